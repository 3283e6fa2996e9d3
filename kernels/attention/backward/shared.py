def shared_bytes(spec, config, part, target): return 0
