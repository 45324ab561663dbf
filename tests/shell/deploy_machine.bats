#!/usr/bin/env bats
# The shim: what it finds, what it says, and that it gets out of the way.

setup() {
    directory=$BATS_TEST_TMPDIR
    cp "$BATS_TEST_DIRNAME/../../scripts/deploy_machine.sh" "$directory/"
    cat >"$directory/deploy_machine.py" <<'END'
import os, sys
print(os.getpid(), *[repr(argument) for argument in sys.argv[1:]])
sys.exit(11)
END
}

# A PATH with the few programs that the shim itself uses, and the given python3.
path_with() {
    mkdir "$directory/bin"
    ln -s "$(command -v readlink)" "$directory/bin/readlink"
    if [ $# = 1 ]; then
        printf '#!/bin/sh\n%s\n' "$1" >"$directory/bin/python3"
        chmod +x "$directory/bin/python3"
    fi
}

@test "arguments and the exit code pass through unchanged" {
    run "$directory/deploy_machine.sh" plan --root "a b" '' '*'
    [ "$status" -eq 11 ]
    [[ $output == *"'plan' '--root' 'a b' '' '*'" ]]
}

@test "it ends in exec: a signal reaches python itself" {
    "$directory/deploy_machine.sh" >"$directory/out" &
    shim=$!
    wait $shim || true
    [ "$(cut -d' ' -f1 "$directory/out")" = "$shim" ]
}

@test "it finds the script through a link, from another directory and through PATH" {
    mkdir "$directory/elsewhere"
    ln -s ../deploy_machine.sh "$directory/elsewhere/deploy"
    cd /
    run "$directory/elsewhere/deploy" x
    [ "$status" -eq 11 ]
    PATH="$directory/elsewhere:$PATH" run deploy x
    [ "$status" -eq 11 ]
}

@test "a directory name with blanks and a leading dash" {
    mkdir "$directory/-a b"
    cp "$directory"/deploy_machine.* "$directory/-a b/"
    cd "$directory/-a b"
    run ./deploy_machine.sh x
    [ "$status" -eq 11 ]
}

@test "without python3: one line, exit 2" {
    path_with
    PATH="$directory/bin" run /bin/sh "$directory/deploy_machine.sh"
    [ "$status" -eq 2 ]
    [ "${#lines[@]}" -eq 1 ]
    [[ $output == *"python3 is not installed: apt install python3"* ]]
}

@test "with a python3 that is too old: one line, exit 2" {
    path_with 'if [ "$1" = --version ]; then echo Python 3.8.10; else exit 1; fi'
    PATH="$directory/bin" run /bin/sh "$directory/deploy_machine.sh"
    [ "$status" -eq 2 ]
    [ "${#lines[@]}" -eq 1 ]
    [[ $output == *"3.9 or newer is needed, but $directory/bin/python3 is Python 3.8.10" ]]
}

@test "without deploy_machine.py beside it: one line, exit 2" {
    rm "$directory/deploy_machine.py"
    run "$directory/deploy_machine.sh"
    [ "$status" -eq 2 ]
    [ "${#lines[@]}" -eq 1 ]
    [[ $output == *"$directory/deploy_machine.py is missing"* ]]
}
