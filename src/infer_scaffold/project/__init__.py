"""A generated project: made from the template, and updated to a newer one."""
