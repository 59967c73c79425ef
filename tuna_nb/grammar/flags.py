"""What each verb takes: a function a verb, which adds its flags to a parser."""

from __future__ import annotations

from tuna_nb.grammar import benchmark_flags
from tuna_nb.grammar.parser import Parser

ROUTER_HOSTS = ("process", "vm", "controller")
OFFER_KINDS = ("serverless", "spot", "on-demand", "interruptible", "dedicated")
BUDGET_SPANS = ("total", "day", "month")
BUDGET_ACTIONS = ("notify", "stop-overflow", "scale-down", "destroy")
BILL_GROUPS = ("backend", "deployment", "day", "gpu", "model", "key")
SORTS = ("price", "all-in", "gpu", "vram", "provider", "kind", "region", "age", "saving")
CHARTS = ("prices", "memory", "regions", "history")
NOTEBOOK_ONLY = ("explore",)
"""Flags that show what a terminal can't."""


def service_name(p: Parser, required: bool = True) -> None:
    p.add_argument("--service-name", required=required, metavar="NAME", help="which deployment")


def deploy(p: Parser) -> None:
    p.add_argument("--model", required=True, help="Hugging Face model id, e.g. Qwen/Qwen3-0.6B")
    p.add_argument("--gpu", required=True, help="GPU type, e.g. L4, L40S, A100, H100")
    p.add_argument("--gpu-count", type=int, default=1, metavar="N", help="GPUs per replica (default 1)")
    p.add_argument("--serverless-provider", metavar="NAME", help="default: the cheapest that sells the GPU")
    p.add_argument(
        "--spots-cloud",
        metavar="NAME",
        help="of the spot GPUs: aws, gcp, azure or local (default: aws where it is set up)",
    )
    p.add_argument("--region", help="of the spot GPUs, or several with commas: us-east-1,us-east-2")
    p.add_argument("--tp-size", type=int, default=1, metavar="N", help="tensor parallel degree (default 1)")
    p.add_argument(
        "--max-model-len", type=int, default=4096, metavar="TOKENS", help="context window (default 4096)"
    )
    p.add_argument("--concurrency", type=int, metavar="N", help="requests at once per serverless container")
    p.add_argument("--workers-max", type=int, metavar="N", help="most serverless containers")
    p.add_argument(
        "--cold-start-mode",
        choices=["fast_boot", "no_fast_boot"],
        default="fast_boot",
        help="fast_boot starts sooner at lower throughput (default)",
    )
    p.add_argument("--no-scale-to-zero", action="store_true", help="keep at least one spot replica")
    p.add_argument("--scaling-policy", metavar="FILE", help="YAML with the sections spot: and serverless:")
    p.add_argument("--service-name", metavar="NAME", help="default: a new name like tuna-a3f8c21b")
    p.add_argument("--serverless-only", action="store_true", help="no spot, no router")
    p.add_argument("--public", action="store_true", help="no key needed: anyone who reaches it may use it")
    p.add_argument("--use-different-vm-for-lb", action="store_true", help="run the router on a VM of its own")
    p.add_argument("--router-host", choices=ROUTER_HOSTS, help="where the router runs (default: what suits)")
    p.add_argument("--router-url", metavar="URL", help="a router that runs already; TUNA_ROUTER_ADMIN_KEY opens it")
    p.add_argument("--port", type=int, metavar="N", help="port of the router (default: a free one)")
    p.add_argument(
        "--engine-cmd",
        metavar="COMMAND",
        help="serve with this command instead, e.g. 'vllm serve {model} --port {port}'",
    )
    p.add_argument("--image", metavar="IMAGE", help="container image with the engine (default: the pinned vLLM)")
    p.add_argument(
        "--engine-args", default="", metavar="ARGS", help="more arguments for the engine, e.g. '--max-num-seqs 64'"
    )
    p.add_argument(
        "--health-path", default="/health", metavar="PATH", help="answers 200 when the engine serves (/health)"
    )
    p.add_argument("--quantization", metavar="METHOD", help="as vLLM calls it, e.g. awq, fp8")
    provider_settings(p)
    p.add_argument("--budget", type=float, metavar="USD", help="what it may cost; `budget set` changes it later")
    p.add_argument("--budget-per", choices=BUDGET_SPANS, help="default: total, all that it ever costs")
    p.add_argument("--budget-warn", metavar="PER_CENT", help="when to tell (default 50,80)")
    p.add_argument("--budget-action", choices=BUDGET_ACTIONS, help="what happens at 100 %% (default notify)")
    p.add_argument("--budget-webhook", metavar="VARIABLE", help="who is told: a variable that holds the address")
    p.add_argument(
        "--quiet-minutes", type=float, metavar="N", help="billing without serving for so long is told (default 15)"
    )
    p.add_argument("--stop-unserving", action="store_true", help="and what bills without serving is stopped then")
    p.add_argument(
        "--dry-run", action="store_true", help="show what would be created and its price; create nothing"
    )
    p.add_argument("--wait", action="store_true", help="return when the first spot replica is ready")


def provider_settings(p: Parser) -> None:
    p.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="a provider's own setting; repeatable"
    )
    for flag, text in (
        ("--gcp-project", "Google Cloud project"),
        ("--gcp-region", "Google Cloud region, e.g. us-central1"),
        ("--azure-subscription", "Azure subscription"),
        ("--azure-resource-group", "Azure resource group"),
        ("--azure-region", "Azure region, e.g. eastus"),
        ("--azure-environment", "Container Apps environment to reuse"),
    ):
        p.add_argument(flag, metavar="ID", help=text)


def destroy(p: Parser) -> None:
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--service-name", metavar="NAME", help="which deployment")
    which.add_argument("--all", action="store_true", help="every deployment of this store")
    which.add_argument(
        "--orphans",
        action="store_true",
        help="everything with Tuna's mark that no deployment of this store owns, another store's included",
    )
    p.add_argument(
        "--shared",
        action="store_true",
        help="also what is kept between deployments and used by none: SkyServe's controller, environments",
    )
    p.add_argument(
        "--azure-cleanup-env",
        action="store_true",
        help="remove Tuna's empty Azure environments too",
    )
    p.add_argument("--wait", action="store_true", help="return when all is gone")


def status(p: Parser) -> None:
    service_name(p)
    live(p)


def live(p: Parser) -> None:
    p.add_argument("--live", action="store_true", help="go on showing it: traffic, latencies, replicas, money")


def scale(p: Parser) -> None:
    service_name(p)
    for flag, kind, text in (
        ("--concurrency", int, "serverless: requests at once per container"),
        ("--scaledown-window", float, "serverless: idle seconds before a container stops"),
        ("--workers-min", int, "serverless: containers kept"),
        ("--workers-max", int, "serverless: most containers"),
        ("--min-replicas", int, "spot: replicas kept"),
        ("--max-replicas", int, "spot: most replicas"),
        ("--target-qps", float, "spot: requests per second per replica"),
    ):
        p.add_argument(flag, type=kind, metavar="N", help=text)
    p.add_argument("--scaling-policy", metavar="FILE", help="YAML with the sections spot: and serverless:")


def wake(p: Parser) -> None:
    service_name(p)
    p.add_argument("--role", choices=["serverless", "spot"], help="default: both")


def list_(p: Parser) -> None:
    p.add_argument(
        "--status", choices=["active", "destroyed", "failed"], help="default: active, all that may still cost money"
    )


def cost(p: Parser) -> None:
    p.add_argument("--service-name", metavar="NAME", help="one deployment (default: all)")
    p.add_argument(
        "--since", metavar="WHEN", help="90m, 24h, 7d, today, month, or a date like 2026-11-01 (default: all of it)"
    )
    p.add_argument("--by", choices=BILL_GROUPS, default="backend", help="what it is told by (default backend)")
    live(p)


def budget(p: Parser) -> None:
    sub = p.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    for action, text in (
        ("set", "so much may be spent, and what happens then"),
        ("list", "what is spent, what is left, what has fired"),
        ("remove", "no such budget any more"),
    ):
        one = sub.add_parser(action, help=text)
        one.add_argument("--service-name", metavar="NAME", help="one deployment (default: all of them together)")
        if action == "set":
            one.add_argument("--limit", type=float, required=True, metavar="USD", help="US dollars")
            one.add_argument("--warn", metavar="PER_CENT", help="when to tell (default 50,80)")
            one.add_argument(
                "--action",
                dest="action_at_limit",
                choices=BUDGET_ACTIONS,
                default="notify",
                help="what happens at 100 %% (default notify)",
            )
            one.add_argument(
                "--webhook", metavar="VARIABLE", help="who is told, as Slack is: a variable that holds the address"
            )
        if action != "list":
            default, which = ("total", "default total") if action == "set" else (None, "default: every one")
            one.add_argument("--per", choices=BUDGET_SPANS, default=default, help=which)
        everywhere(one)


def show_gpus(p: Parser) -> None:
    p.add_argument("--gpu", metavar="GPU", help="one GPU, every offer of it")
    p.add_argument("--provider", metavar="NAME", help="one seller, e.g. modal, aws, vast")
    p.add_argument("--kind", action="append", default=[], choices=OFFER_KINDS, help="how it is sold; repeatable")
    p.add_argument("--spot", action="store_true", help="spot prices beside serverless ones")
    p.add_argument("--spots-cloud", choices=["aws", "gcp", "azure"], help="whose spot prices (default aws)")
    p.add_argument("--region", metavar="TEXT", help="a part of the region's name, every offer there")
    p.add_argument("--min-vram", type=float, metavar="GB", help="memory of one GPU at least")
    p.add_argument("--max-price", type=float, metavar="USD", help="per GPU-hour; all in with --all-in")
    p.add_argument("--gpu-count", type=int, metavar="N", help="GPUs of a machine")
    p.add_argument("--all-in", action="store_true", help="compare by all that is billed, vCPUs and memory too")
    p.add_argument(
        "--cpus", type=float, metavar="N", help="vCPUs to price in (default: the machine's, else 8 a GPU)"
    )
    p.add_argument("--memory", type=float, metavar="GIB", help="memory to price in (default: 32 a GPU)")
    p.add_argument("--disk", type=float, default=0, metavar="GB", help="disk to price in (default 0)")
    p.add_argument("--sort", choices=SORTS, help="default: by memory, or by price for one GPU")
    p.add_argument("--every", action="store_true", help="every offer, not only the cheapest of each seller")
    p.add_argument("--limit", type=int, metavar="N", help="so many rows at most")
    p.add_argument("--offset", type=int, default=0, metavar="N", help="after the first N rows")
    p.add_argument("--live", action="store_true", help="ask the sources now; else what was asked before")
    p.add_argument("--timeout", type=float, default=5, metavar="SECONDS", help="wait so long for them (default 5)")
    p.add_argument("--history", action="store_true", help="what was seen in the last 90 days")
    seen = p.add_mutually_exclusive_group()
    seen.add_argument("--chart", choices=CHARTS, help="draw it: every kind of sale, unless --kind says which")
    seen.add_argument("--explore", action="store_true", help="notebook: every offer, to filter and sort by hand")


def check(p: Parser) -> None:
    p.add_argument("--provider", metavar="NAME", help="or a cloud, as aws; default: every one that is installed")
    p.add_argument("--gpu", metavar="GPU", help="also check that each provider offers this GPU")
    p.add_argument("--model", help="also check that this model is there and may be had")
    p.add_argument("--engine-cmd", metavar="COMMAND", help="also check that this engine's program is here")
    provider_settings(p)


def fit(p: Parser) -> None:
    p.add_argument("--model", required=True, help="Hugging Face model id, or a folder with its config.json")
    p.add_argument("--quantization", metavar="METHOD", help="awq, gptq, fp8, int8 (default: as its checkpoint is)")
    p.add_argument(
        "--max-model-len", type=int, default=4096, metavar="TOKENS", help="context window (default 4096)"
    )
    p.add_argument(
        "--concurrency", type=int, default=32, metavar="N", help="requests of that length at once (default 32)"
    )
    p.add_argument(
        "--kv-cache-dtype", choices=["auto", "fp8"], default="auto", help="default: auto, the model's own"
    )
    p.add_argument("--gpu", help="only this GPU, with every number of them (default: those that are sold)")
    p.add_argument(
        "--tp-size", type=int, metavar="N", help="tensor parallel degree (default: the least that holds)"
    )
    p.add_argument(
        "--gpu-memory-utilization",
        type=float,
        default=0.92,
        metavar="SHARE",
        help="of its memory the engine may use (default 0.92, as vLLM's)",
    )


def logs(p: Parser) -> None:
    service_name(p)
    p.add_argument("--role", choices=["serverless", "spot", "router"], help="default: all three")
    p.add_argument("--since", type=float, metavar="SECONDS", help="only lines of the last SECONDS")
    p.add_argument("--follow", "-f", action="store_true", help="go on until interrupted")


def demo(p: Parser) -> None:
    p.add_argument("--requests", type=int, default=240, metavar="N", help="streamed requests to send (default 240)")
    p.add_argument("--keep", action="store_true", help="leave the deployment running at the end")


def jobs(p: Parser) -> None:
    p.add_argument("name", nargs="?", help="one job; in a notebook `job = %%tuna jobs NAME` can be awaited")
    p.add_argument("--all", action="store_true", help="ended ones too")


def cancel(p: Parser) -> None:
    p.add_argument("name", help="the job's name, as `jobs` shows it")


def connect(p: Parser) -> None:
    p.add_argument("name", help="which deployment")
    p.add_argument("as_", nargs="?", choices=["as"], metavar="as", help="then the variable to bind, in a notebook")
    p.add_argument("variable", nargs="?", metavar="VARIABLE", help="gets an openai.OpenAI for the endpoint")
    p.add_argument("--env", action="store_true", help="terminal: print export lines with the key, for eval")


def local(p: Parser) -> None:
    sub = p.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    preempt = sub.add_parser("preempt", help="take a spot replica away")
    service_name(preempt)
    preempt.add_argument(
        "--notice", type=float, metavar="SECONDS", help="default: the deployment's own; 0 for none"
    )
    preempt.add_argument("--replica", metavar="ID", help="default: the oldest that serves")
    bill = sub.add_parser("bill", help="the local cloud's own bill")
    bill.add_argument("--service-name", metavar="NAME", help="default: everything")
    for verb in (preempt, bill):
        everywhere(verb)


def router(p: Parser) -> None:
    sub = p.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    for action, text in (
        ("status", "where it runs, and which version"),
        ("logs", "what it says"),
        ("upgrade", "put the tuna-router that is installed here in its place"),
        ("restart", "put another process in its place"),
        ("move", "to another host, at another address"),
    ):
        one = sub.add_parser(action, help=text)
        service_name(one)
        if action == "logs":
            one.add_argument("--since", type=float, metavar="SECONDS", help="only lines of the last SECONDS")
            one.add_argument("--follow", "-f", action="store_true", help="go on until interrupted")
        if action == "move":
            one.add_argument("--to", required=True, choices=ROUTER_HOSTS, help="where it shall run")
            one.add_argument("--yes", action="store_true", help="its clients will be told the new address")
        everywhere(one)


def benchmark(p: Parser) -> None:
    sub = p.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    for action, (text, arguments) in benchmark_flags.ACTIONS.items():
        one = sub.add_parser(action, help=text, description=text[0].upper() + text[1:] + ".")
        arguments(one)
        everywhere(one)


def everywhere(p: Parser) -> None:
    p.add_argument("-o", "--output", choices=["table", "json"], default="table", help="terminal: how to print")
    p.add_argument("--out", metavar="VARIABLE", help="notebook: store the result under this name")
    p.add_argument("-v", "--verbose", action="store_true", help="details, and the traceback of an error")
