"""Network namespaces: a hub with a bridge, and one for each machine and the runner. No route leads out."""

from __future__ import annotations

from lab.host import call


class Network:
    """All namespaces of one lab; their names begin with its id."""

    def __init__(self, lab_id: str) -> None:
        self.id = lab_id
        self.hub = f"{lab_id}-hub"

    def namespace(self, name: str) -> str:
        return f"{self.id}-{name}"

    def up(self) -> None:
        call("ip", "netns", "add", self.hub)
        self.in_hub("link", "set", "lo", "up")
        self.in_hub("link", "add", "bridge", "type", "bridge")
        self.in_hub("link", "set", "bridge", "up")

    def in_hub(self, *arguments: str) -> None:
        call("ip", "-n", self.hub, *arguments)

    def join(self, name: str, number: int) -> None:
        """Make a namespace `name` with the address 10.0.0.`number` on the bridge."""
        namespace = self.namespace(name)
        call("ip", "netns", "add", namespace)
        mac = f"02:00:0a:00:00:{number:02x}"
        call("ip", "-n", namespace, "link", "add", "eth0", "address", mac, "type", "veth",
             "peer", "name", f"to-{name}"[:15], "netns", self.hub)  # fmt: skip
        self.in_hub("link", "set", f"to-{name}"[:15], "master", "bridge", "up")
        call("ip", "-n", namespace, "address", "add", f"10.0.0.{number}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            call("ip", "-n", namespace, "link", "set", device, "up")

    def unplug(self, name: str) -> None:
        """Packets to and from it vanish, as when its power or its cable is gone."""
        call("ip", "-n", self.hub, "link", "set", f"to-{name}"[:15], "down", check=False)

    def plug(self, name: str) -> None:
        self.in_hub("link", "set", f"to-{name}"[:15], "up")

    def leave(self, name: str) -> None:
        # the kernel removes the pair with the namespace too, but only some time later
        call("ip", "-n", self.hub, "link", "del", f"to-{name}"[:15], check=False)
        call("ip", "netns", "del", self.namespace(name), check=False)

    def down(self) -> None:
        """Remove every namespace of this lab."""
        for line in call("ip", "netns", "list").stdout.splitlines():
            name = line.split()[0]
            if name.startswith(f"{self.id}-"):
                call("ip", "netns", "del", name, check=False)
