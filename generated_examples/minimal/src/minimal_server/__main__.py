"""`python -m <package>`: the service behind uvicorn, with a shutdown that finishes its answers."""

import ipaddress
import logging
import os
import signal
import sys
import threading
from functools import partial
from types import FrameType

import uvicorn
from pydantic import ValidationError
from starlette.types import ASGIApp

from .app import create_app
from .serving.http.api_keys import KeyFileError
from .serving.http.drain import Drain
from .serving.http.http_metrics import MetricsServer
from .serving.http.logs import configure_logging
from .serving.http.protocol import BoundedProtocol, connection_limit
from .serving.metrics import Metrics
from .serving.models.device import Device
from .serving.models.model_errors import ConfigurationError
from .serving.threads import threads_left
from .settings import DEVICES, Settings, misspelt

logger = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """Keeps listening after the first signal, so that readiness can say 503, then leaves."""

    def __init__(self, config: uvicorn.Config, drain: Drain, drain_seconds: float) -> None:
        super().__init__(config)
        self.drain = drain
        self.drain_seconds = drain_seconds

    async def main_loop(self) -> None:
        await super().main_loop()
        await self.drain.finish(self.drain_seconds)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's own: it raises the signal again after a clean shutdown, which then looks
        # like a crash, and it ignores a second SIGTERM.
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.should_exit = True


def check_device(settings: Settings) -> None:
    """Ends the process where the device that was asked for is missing. `auto` and the CPU are not
    checked: that would import torch, which takes seconds.
    """
    if settings.device in ("auto", "cpu"):
        return
    try:
        device = Device(settings.device, settings.dtype, DEVICES).torch_device
        logger.debug("the device is %s", device)
    except RuntimeError as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        raise SystemExit(2) from None


def is_loopback(host: str) -> bool:
    """True for an address that only this machine can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve_metrics(settings: Settings, metrics: Metrics) -> None:
    """Serves the metrics on a port of their own, which no client of the service reaches."""
    try:
        server = MetricsServer(settings.host, settings.metrics_port, metrics)
    except OSError as error:
        print(f"INFER_METRICS_PORT: {settings.metrics_port}: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


def server_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """uvicorn's configuration: limits of connections, trusted proxies, and no log of its own."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(BoundedProtocol, limit=connection_limit(settings.max_connections)),  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        forwarded_allow_ips=list(settings.forwarded_allow_ips),
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=5,
    )


def main() -> None:
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors():
            name = f"INFER_{problem['loc'][0]}".upper() if problem["loc"] else "INFER_*"
            print(f"{name}: {problem['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        raise SystemExit(2) from None
    configure_logging(settings.log_format, settings.log_level)
    for sentence in misspelt():
        # Not an error: Kubernetes and other tools set variables with this prefix too.
        logger.warning(sentence)
    check_device(settings)
    if not settings.has_keys and not is_loopback(settings.host):
        logger.warning("%s is open to the network, and no INFER_API_KEYS are set", settings.host)
    try:
        app = create_app(settings)
    except (ConfigurationError, KeyFileError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    if settings.metrics_port:
        serve_metrics(settings, app.state.metrics)
    config = server_config(app, settings)
    DrainingServer(config, app.state.drain, settings.drain_seconds).run()
    if threads_left():
        # A model that is half loaded: its C++ code would crash while the interpreter goes down.
        logging.shutdown()
        os._exit(0)


if __name__ == "__main__":
    main()
