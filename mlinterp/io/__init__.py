"""Files: the only reader and writer of them. Atomic writes, digests, manifests, tables, spec documents, tensors, schemas."""
