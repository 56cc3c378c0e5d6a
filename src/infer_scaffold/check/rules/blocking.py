"""Calls that hold the event loop, as data. Each has the reason that a finding gives."""

from dataclasses import dataclass

_FILE = "reads or writes a file"
_FOLDER = "reads or changes a folder"
_SERVER = "waits for a server"
_PROCESS = "waits for a process"
_MODEL = "runs the model"
_LOADS = "loads a model"
_COMPUTES = "computes"
_AUDIO = "reads and decodes audio"
_IMAGE = "reads or computes an image"
_DATABASE = "waits for a database"
_THREAD = "waits for another thread"
_TOKENS = "tokenises"

MODULE_CALLS = (
    {
        "open": _FILE,
        "io.open": _FILE,
        "codecs.open": _FILE,
        "gzip.open": _FILE,
        "tarfile.open": _FILE,
        "wave.open": _FILE,
        "zipfile.ZipFile": _FILE,
        "time.sleep": "sleeps",
        "os.system": _PROCESS,
        "os.popen": _PROCESS,
        "os.wait": _PROCESS,
        "os.waitpid": _PROCESS,
        "subprocess.run": _PROCESS,
        "subprocess.call": _PROCESS,
        "subprocess.check_call": _PROCESS,
        "subprocess.check_output": _PROCESS,
        "subprocess.getoutput": _PROCESS,
        "subprocess.Popen": "starts a process",
        "urllib.request.urlopen": _SERVER,
        "urllib.request.urlretrieve": _SERVER,
        "socket.create_connection": _SERVER,
        "socket.getaddrinfo": "waits for a name server",
        "socket.gethostbyname": "waits for a name server",
        "concurrent.futures.wait": _THREAD,
        "concurrent.futures.as_completed": _THREAD,
        "input": "waits for somebody to type",
        "hashlib.file_digest": "reads a file and hashes it",
        "hashlib.pbkdf2_hmac": _COMPUTES,
        "hashlib.scrypt": _COMPUTES,
        "bcrypt.checkpw": _COMPUTES,
        "bcrypt.hashpw": _COMPUTES,
        "joblib.load": "reads a model",
        "joblib.dump": "writes a model",
        "pickle.load": "reads a file",
        "numpy.load": "reads a file",
        "numpy.save": "writes a file",
        "pandas.read_csv": "reads a file",
        "pandas.read_excel": "reads a file",
        "pandas.read_json": "reads a file",
        "pandas.read_parquet": "reads a file",
        "psycopg.connect": _DATABASE,
        "psycopg2.connect": _DATABASE,
        "pymysql.connect": _DATABASE,
        "sqlite3.connect": _DATABASE,
        "safetensors.torch.load_file": "reads weights",
        "safetensors.torch.save_file": "writes weights",
        "librosa.load": _AUDIO,
        "librosa.resample": _COMPUTES,
        "soundfile.read": _AUDIO,
        "soundfile.write": "writes a file",
        "torchaudio.load": _AUDIO,
        "torchaudio.save": "writes a file",
        "whisper.load_audio": _AUDIO,
        "whisper.load_model": _LOADS,
        "whisper.transcribe": _MODEL,
        "pydub.AudioSegment.from_file": _AUDIO,
        "cv2.imread": _IMAGE,
        "cv2.imwrite": _IMAGE,
        "cv2.imdecode": _IMAGE,
        "cv2.imencode": _IMAGE,
        "fitz.open": "reads a document",
        "pypdf.PdfReader": "reads a document",
        "pdf2image.convert_from_bytes": "renders a document",
        "pdf2image.convert_from_path": "renders a document",
        "ray.get": "waits for another process",
        "torch.load": "reads weights",
        "torch.save": "writes weights",
        "torch.jit.load": "reads weights",
        "torch.hub.load": _LOADS,
        "torch.cuda.synchronize": "waits for the GPU",
        "huggingface_hub.snapshot_download": "downloads a model",
        "huggingface_hub.hf_hub_download": "downloads a model",
        "transformers.pipeline": _LOADS,
        "ollama.chat": _SERVER,
        "ollama.embed": _SERVER,
        "ollama.generate": _SERVER,
        "litellm.completion": _SERVER,
        "litellm.embedding": _SERVER,
    }
    | {
        f"{library}.{place}{verb}": why
        for library in ("mlx_lm", "mlx_vlm")
        for place in ("", "generate.", "utils.")
        for verb, why in {
            "generate": _MODEL,
            "stream_generate": _MODEL,
            "batch_generate": _MODEL,
            "load": _LOADS,
        }.items()
    }
    | {
        f"shutil.{verb}": why
        for why, verbs in {
            "copies files": ("copy", "copy2", "copyfile", "copyfileobj", "copytree"),
            "moves files": ("move",),
            "deletes files": ("rmtree",),
            "packs files": ("make_archive", "unpack_archive"),
        }.items()
        for verb in verbs
    }
    | {
        f"os.{verb}": _FOLDER
        for verb in (
            *("listdir", "makedirs", "mkdir", "remove", "removedirs", "rename", "renames"),
            *("replace", "rmdir", "scandir", "unlink", "walk", "truncate", "fsync"),
        )
    }
    | {f"glob.{verb}": _FOLDER for verb in ("glob", "iglob")}
    | {
        f"{library}.{verb}": _SERVER
        for library in ("requests", "httpx")
        for verb in ("get", "post", "put", "patch", "delete", "head", "request", "stream")
    }
)

# By the letter alone. Looking at a file without reading it takes microseconds on a disk, and
# seconds on a share.
STRICT_CALLS = {
    f"os.path.{verb}": "looks at a file"
    for verb in ("exists", "isfile", "isdir", "getsize", "getmtime", "realpath")
} | {"os.stat": "looks at a file", "gc.collect": "stops all threads"}
STRICT_PATH_METHODS = dict.fromkeys(
    ("exists", "is_file", "is_dir", "stat", "resolve"), "looks at a file"
)

# Computation on tensors. A helper is full of it, so that one finding a function is enough.
COMPUTATION = {
    f"torch.{verb}": _COMPUTES
    for verb in (
        *("argmax", "argsort", "bmm", "cat", "cdist", "concat", "cosine_similarity", "einsum"),
        *("matmul", "mean", "mm", "multinomial", "norm", "sigmoid", "softmax", "sort", "stack"),
        *("tensor", "topk", "compile", "log_softmax", "cumsum"),
    )
}
COMPUTATION_BELOW = {
    "torch.nn.functional.": _COMPUTES,
    "torch.linalg.": _COMPUTES,
    "torch.fft.": _COMPUTES,
    "torchaudio.functional.": _COMPUTES,
    "librosa.feature.": _COMPUTES,
    "librosa.effects.": _COMPUTES,
}


@dataclass(frozen=True)
class Waits:
    """A call that blocks by one of its arguments: with one, or unless it is given as false."""

    argument: str
    position: int
    why: str
    unless_false: bool = False


CONDITIONAL_CALLS = {
    "psutil.cpu_percent": Waits("interval", 0, "sleeps"),
    "psutil.cpu_times_percent": Waits("interval", 0, "sleeps"),
}
_LOCK = {"acquire": Waits("blocking", 0, _THREAD, unless_false=True)}
_QUEUE = {
    "get": Waits("block", 0, _THREAD, unless_false=True),
    "join": Waits("block", 9, _THREAD, unless_false=True),
}
CONDITIONAL_METHODS = (
    {"psutil.Process": {"cpu_percent": Waits("interval", 0, "sleeps")}}
    | {f"threading.{name}": _LOCK for name in ("Lock", "RLock", "Semaphore", "BoundedSemaphore")}
    | {f"multiprocessing.{name}": _LOCK for name in ("Lock", "RLock", "Semaphore")}
    | {f"queue.{name}": _QUEUE for name in ("Queue", "LifoQueue", "PriorityQueue")}
    | {
        f"concurrent.futures.{name}": {"shutdown": Waits("wait", 0, _THREAD, unless_false=True)}
        for name in ("ThreadPoolExecutor", "ProcessPoolExecutor")
    }
    | {"multiprocessing.Queue": _QUEUE, "multiprocessing.JoinableQueue": _QUEUE}
    | {"queue.SimpleQueue": {"get": _QUEUE["get"]}}
)

# Methods that block whatever they are called on.
METHODS = {
    "from_pretrained": _LOADS,
    "read_text": "reads a file",
    "read_bytes": "reads a file",
    "write_text": "writes a file",
    "write_bytes": "writes a file",
}

_ANY = dict.fromkeys(
    ("get", "post", "put", "patch", "delete", "head", "request", "stream", "send"), _SERVER
)
_OPENAI = {
    "chat.completions.create": _SERVER,
    "completions.create": _SERVER,
    "embeddings.create": _SERVER,
    "responses.create": _SERVER,
    "audio.speech.create": _SERVER,
    "audio.transcriptions.create": _SERVER,
    "images.generate": _SERVER,
    "models.list": _SERVER,
}
_WAITS = dict.fromkeys(("wait", "communicate", "join"), _PROCESS)

# Methods of objects whose class is known: by what made them, what blocks and why. An empty name
# is the call of the object itself, and "*" each of its methods.
INSTANCE_CALLS: dict[str, dict[str, str]] = {
    "pathlib.Path": dict.fromkeys(
        (
            *("open", "unlink", "mkdir", "rmdir", "iterdir", "glob", "rglob", "rename"),
            *("replace", "touch"),
        ),
        _FOLDER,
    ),
    "subprocess.Popen": _WAITS,
    "multiprocessing.Process": _WAITS,
    "multiprocessing.connection.Connection": {"recv": _PROCESS, "recv_bytes": _PROCESS},
    "threading.Thread": {"join": _THREAD},
    "threading.Event": {"wait": _THREAD},
    "threading.Condition": {"wait": _THREAD, "wait_for": _THREAD, "acquire": _THREAD},
    "threading.Barrier": {"wait": _THREAD},
    "asyncio.run_coroutine_threadsafe": {"result": _THREAD},
    "concurrent.futures.ThreadPoolExecutor": {"map": _THREAD},
    "concurrent.futures.ProcessPoolExecutor": {"map": _THREAD},
    "concurrent.futures.Future": {"result": _THREAD},
    "multiprocessing.Pool": dict.fromkeys(("map", "starmap", "apply"), _THREAD),
    "http.client.HTTPConnection": {"request": _SERVER, "getresponse": _SERVER},
    "http.client.HTTPSConnection": {"request": _SERVER, "getresponse": _SERVER},
    "httpx.Client": _ANY,
    "requests.Session": _ANY,
    "requests.session": _ANY,
    "urllib3.PoolManager": _ANY,
    "openai.OpenAI": _OPENAI,
    "openai.AzureOpenAI": _OPENAI,
    "anthropic.Anthropic": {"messages.create": _SERVER},
    "cohere.Client": {"*": _SERVER},
    "ollama.Client": {"*": _SERVER},
    "boto3.client": {"*": _SERVER},
    "boto3.resource": {"*": _SERVER},
    "docker.from_env": {"*": _SERVER},
    "gradio_client.Client": {"predict": _SERVER},
    "huggingface_hub.InferenceClient": {"*": _SERVER},
    "huggingface_hub.HfApi": {"*": _SERVER},
    "elasticsearch.Elasticsearch": {"*": _SERVER},
    "kafka.KafkaProducer": {"flush": _SERVER},
    "minio.Minio": {"*": _SERVER},
    "pymongo.MongoClient": {"*": _DATABASE},
    "qdrant_client.QdrantClient": {"*": _DATABASE},
    "redis.Redis": {"*": _DATABASE},
    "redis.StrictRedis": {"*": _DATABASE},
    "redis.from_url": {"*": _DATABASE},
    "sqlite3.connect": dict.fromkeys(("execute", "commit", "cursor"), _DATABASE),
    "psycopg.connect": dict.fromkeys(("execute", "commit", "cursor"), _DATABASE),
    "psycopg2.connect": {"commit": _DATABASE},
    "sqlalchemy.orm.Session": dict.fromkeys(
        ("execute", "commit", "query", "scalar", "scalars", "flush"), _DATABASE
    ),
    "PIL.Image.open": dict.fromkeys(
        ("convert", "load", "resize", "save", "thumbnail", "verify"), _IMAGE
    ),
    "ffmpeg.input": {"*": _PROCESS},
    "ctranslate2.Generator": {"generate_batch": _MODEL},
    "ctranslate2.Translator": {"translate_batch": _MODEL},
    "faster_whisper.WhisperModel": {"transcribe": _MODEL, "detect_language": _MODEL},
    "faster_whisper.BatchedInferencePipeline": {"transcribe": _MODEL},
    "kokoro.KPipeline": {"": _MODEL},
    "llama_cpp.Llama": {
        "": _MODEL,
        "create_chat_completion": _MODEL,
        "create_completion": _MODEL,
        "create_embedding": _MODEL,
        "embed": _MODEL,
        "tokenize": _TOKENS,
        "detokenize": "detokenises",
    },
    "onnxruntime.InferenceSession": {"run": _MODEL},
    "sentence_transformers.CrossEncoder": {"predict": _MODEL, "rank": _MODEL},
    "sentence_transformers.SentenceTransformer": {"encode": _MODEL},
    "spacy.load": {"": _MODEL, "pipe": _MODEL},
    "torch.jit.load": {"": _MODEL},
    "torch.hub.load": {"": _MODEL},
    "transformers.pipeline": {"": _MODEL},
    "ultralytics.YOLO": {"": _MODEL, "predict": _MODEL, "track": _MODEL},
    "vllm.LLM": dict.fromkeys(("generate", "chat", "embed", "encode"), _MODEL),
    "whisper.load_model": {"transcribe": _MODEL, "detect_language": _MODEL},
}
# The same, by the last name of what made the object: of a class that is not named here.
MADE_BY = {
    "from_pretrained": {
        "": "runs the model, or tokenises",
        "generate": _MODEL,
        "forward": _MODEL,
        "encode": "runs the model, or tokenises",
        "decode": "runs the model, or detokenises",
        "batch_decode": "detokenises",
        "apply_chat_template": _TOKENS,
    },
    "submit": {"result": _THREAD, "exception": _THREAD},
}

# Methods whose names mean many things: they count where the receiver's name says model.
MODEL_METHODS = {
    "generate": _MODEL,
    "generate_batch": _MODEL,
    "forward": _MODEL,
    "encode": "runs the model, or tokenises",
    "decode": "runs the model, or detokenises",
    "batch_decode": "detokenises",
    "apply_chat_template": _TOKENS,
    "transcribe": _MODEL,
    "synthesize": _MODEL,
    "predict": _MODEL,
    "infer": _MODEL,
    "embed": _MODEL,
    "get_embeddings": _MODEL,
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
# Of these, the names that say enough, whatever they are called on; and functions likewise.
UNMISTAKABLE = {"generate", "transcribe", "generate_batch", "get_embeddings", "synthesize"}
NAMED_CALLS = {
    name: why
    for why, names in {
        _LOADS: ("load_model", "load_models", "load_pipeline", "load_lora", "load_loras"),
        "frees a model": ("unload_model", "unload_models", "unload_all_models"),
    }.items()
    for verb in names
    for name in (verb, f"_{verb}")
}
PIPELINES = ("pipe", "pipeline", "predictor")
"""Endings of the names of objects that are called, such as `for audio in pipe(text)`."""
