server ENV.fetch("BENCH_HOST"), user: "deploy", roles: %w[app], ssh_options: {
  config: false, keys: [ENV.fetch("BENCH_KEY")], keys_only: true, auth_methods: %w[publickey], timeout: 5,
  user_known_hosts_file: ENV.fetch("BENCH_KNOWN_HOSTS"), verify_host_key: :always
}
