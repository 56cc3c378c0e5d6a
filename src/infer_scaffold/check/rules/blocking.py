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
    "concurrent.futures.wait": "waits for other threads",
    "concurrent.futures.as_completed": "waits for other threads",
    "input": "waits for somebody to type",
    "joblib.load": "reads a model",
    "librosa.load": "reads and decodes audio",
    "numpy.load": "reads a file",
    "pandas.read_csv": "reads a file",
    "pandas.read_parquet": "reads a file",
    "pickle.load": "reads a file",
    "psycopg2.connect": "waits for a database",
    "safetensors.torch.load_file": "reads weights",
    "socket.create_connection": "waits for a server",
    "socket.getaddrinfo": "waits for a name server",
    "socket.gethostbyname": "waits for a name server",
    "soundfile.read": "reads and decodes audio",
    "soundfile.write": "writes a file",
    "sqlite3.connect": "waits for a database",
    "tarfile.open": "reads a file",
    "torch.cuda.synchronize": "waits for the GPU",
    "torch.load": "reads weights",
    "torch.save": "writes weights",
    "whisper.load_model": "loads a model",
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

# Methods of objects whose class is known: by a constructor's name, what blocks and why. An empty
# name is the call of the object itself.
INSTANCE_CALLS = {
    "ctranslate2.Generator": {"generate_batch": "runs the model"},
    "ctranslate2.Translator": {"translate_batch": "runs the model"},
    "faster_whisper.WhisperModel": {"transcribe": "runs the model"},
    "httpx.Client": dict.fromkeys(("get", "post", "request", "stream"), "waits for a server"),
    "llama_cpp.Llama": {
        "": "runs the model",
        "create_chat_completion": "runs the model",
        "create_completion": "runs the model",
        "create_embedding": "runs the model",
        "embed": "runs the model",
        "tokenize": "tokenises",
    },
    "onnxruntime.InferenceSession": {"run": "runs the model"},
    "openai.OpenAI": {
        "chat.completions.create": "waits for a server",
        "completions.create": "waits for a server",
        "embeddings.create": "waits for a server",
    },
    "requests.Session": dict.fromkeys(("get", "post", "request"), "waits for a server"),
    "sentence_transformers.CrossEncoder": {"predict": "runs the model", "rank": "runs the model"},
    "sentence_transformers.SentenceTransformer": {"encode": "runs the model"},
    "transformers.pipeline": {"": "runs the model"},
    "vllm.LLM": dict.fromkeys(("generate", "chat", "embed", "encode"), "runs the model"),
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
