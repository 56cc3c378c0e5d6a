"""The endpoints, one group a module. They know HTTP and nothing of tensors."""
