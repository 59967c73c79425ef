"""What `benchmark cold-start` takes."""

from __future__ import annotations

from tuna_nb.grammar import flags
from tuna_nb.grammar.parser import Parser


def cold_start(p: Parser) -> None:
    p.add_argument("--model", required=True, help="Hugging Face model id, e.g. Qwen/Qwen3-0.6B")
    p.add_argument("--gpu", required=True, help="GPU type, e.g. L4, L40S, A100, H100")
    p.add_argument(
        "--serverless-provider",
        metavar="A,B",
        help="one or several, side by side (default: the cheapest that sells the GPU)",
    )
    p.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="cycles from zero, or fresh deploys (default 3)"
    )
    only = p.add_mutually_exclusive_group()
    only.add_argument("--fresh-only", action="store_true", help="only fresh deploys, each taken down again")
    only.add_argument("--warm-only", action="store_true", help="only from zero; the deploy itself is not counted")
    p.add_argument(
        "--idle-wait",
        type=float,
        metavar="SECONDS",
        help="most to wait until the provider says that nothing runs (default: the window and 120 more)",
    )
    p.add_argument(
        "--scaledown-window",
        type=float,
        default=60,
        metavar="SECONDS",
        help="idle time before a container stops (default 60)",
    )
    p.add_argument(
        "--start-timeout", type=float, default=1800, metavar="SECONDS", help="most for one start (default 1800)"
    )
    p.add_argument("--budget", type=float, metavar="USD", help="stop, and take all down, before it costs more")
    p.add_argument("--name", help="to keep the result under (default: a new one)")
    p.add_argument("--no-teardown", action="store_true", help="leave the deployments; they may go on costing")
    p.add_argument("--gpu-count", type=int, default=1, metavar="N", help="GPUs per container (default 1)")
    p.add_argument("--tp-size", type=int, default=1, metavar="N", help="tensor parallel degree (default 1)")
    p.add_argument(
        "--max-model-len", type=int, default=4096, metavar="TOKENS", help="context window (default 4096)"
    )
    p.add_argument(
        "--cold-start-mode",
        choices=["fast_boot", "no_fast_boot"],
        default="fast_boot",
        help="fast_boot starts sooner at lower throughput (default)",
    )
    p.add_argument("--engine-cmd", metavar="COMMAND", help="serve with this command instead")
    p.add_argument("--image", metavar="IMAGE", help="container image with the engine (default: the pinned vLLM)")
    p.add_argument("--engine-args", default="", metavar="ARGS", help="more arguments for the engine")
    p.add_argument("--health-path", default="/health", metavar="PATH", help="answers 200 when the engine serves")
    p.add_argument("--quantization", metavar="METHOD", help="as vLLM calls it, e.g. awq, fp8")
    flags.provider_settings(p)
