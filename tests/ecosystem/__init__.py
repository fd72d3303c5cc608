"""Programs of third-party libraries; not a part of `make test`: see `make test-ecosystem`."""
