"""llama.cpp's own server: `llama_server.py MODEL.gguf TEMPLATE.jinja PORT`. Ends with its stdin."""

import sys
from pathlib import Path

import xllamacpp

SLOTS = 16
THREADS = 2

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.chat_template = Path(sys.argv[2]).read_text()  # the GGUF has none
params.hostnames = ["127.0.0.1"]
params.port = int(sys.argv[3])
params.n_parallel = SLOTS
params.n_ctx = SLOTS * 2048
params.cpuparams.n_threads = THREADS
params.cpuparams_batch.n_threads = THREADS
server = xllamacpp.Server(params)
print(f"listening on {server.listening_address}", flush=True)
sys.stdin.read()
