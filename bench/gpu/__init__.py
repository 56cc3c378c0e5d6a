"""What only a GPU can show of a generated service, as one folder that is carried there.

`make gpu-bundle` writes the folder where there is a network; `make gpu` runs it, there or here.
"""
