"""The models: tokens and tensors, nothing of HTTP. The only package that imports torch."""
