"""Calls that hold the event loop, as data."""

MODULE_CALLS = {
    "open": "reads or writes a file",
    "io.open": "reads or writes a file",
    "time.sleep": "sleeps",
    "os.system": "waits for a process",
    "subprocess.run": "waits for a process",
    "subprocess.call": "waits for a process",
    "subprocess.check_call": "waits for a process",
    "subprocess.check_output": "waits for a process",
    "urllib.request.urlopen": "waits for a server",
    "shutil.copy": "copies files",
    "shutil.copyfile": "copies files",
    "shutil.copyfileobj": "copies files",
    "shutil.copytree": "copies files",
    "shutil.move": "moves files",
    "shutil.rmtree": "deletes files",
    "torch.load": "reads weights",
    "torch.save": "writes weights",
    "huggingface_hub.snapshot_download": "downloads a model",
    "huggingface_hub.hf_hub_download": "downloads a model",
    "transformers.pipeline": "loads a model",
} | {
    f"{library}.{verb}": "waits for a server"
    for library in ("requests", "httpx")
    for verb in ("get", "post", "put", "patch", "delete", "head", "request", "stream")
}

METHODS = {
    "from_pretrained": "loads a model",
    "read_text": "reads a file",
    "read_bytes": "reads a file",
    "write_text": "writes a file",
    "write_bytes": "writes a file",
}

# Methods whose names mean many things: they count where the receiver's name says model.
MODEL_METHODS = {
    "generate": "runs the model",
    "forward": "runs the model",
    "encode": "runs the model, or tokenises",
    "decode": "runs the model, or detokenises",
    "batch_decode": "detokenises",
    "apply_chat_template": "tokenises",
    "transcribe": "runs the model",
    "predict": "runs the model",
}
MODEL_NAMES = (
    "model",
    "tokenizer",
    "encoder",
    "embedder",
    "pipeline",
    "engine",
    "processor",
    "llm",
)
