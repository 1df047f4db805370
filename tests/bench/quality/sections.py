"""The parts of the benchmark: each takes the setting and a subject, prints a table and returns its figures."""

import dataclasses
import json
import shutil
from pathlib import Path

import tokenizers

from tools import WINDOW, Llama, Runner, Skip, Worker

HERE = Path(__file__).parent
GGUF_TYPES = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_1", "Q4_0"]
IMATRIX_TYPES = ["Q5_K_M", "Q4_K_M", "Q4_0"]
# (name in the tables, environment, tool, symmetric)
REFERENCES = [
    ("llm-compressor RTN", "llmcompressor", "llmcompressor-rtn", True),
    ("llm-compressor GPTQ", "llmcompressor", "llmcompressor-gptq", True),
    ("llm-compressor AWQ", "llmcompressor", "llmcompressor-awq", True),
    ("GPTQModel GPTQ", "gptqmodel", "gptqmodel", True),
    ("llm-compressor RTN", "llmcompressor", "llmcompressor-rtn", False),
    ("llm-compressor GPTQ", "llmcompressor", "llmcompressor-gptq", False),
    ("llm-compressor AWQ", "llmcompressor", "llmcompressor-awq", False),
    ("AutoAWQ AWQ", "autoawq", "autoawq", False),
]


@dataclasses.dataclass
class Subject:
    """A model, the text it is scored on, and the text that calibrates."""

    name: str
    model: Path
    group: int
    windows: int
    calibration_tokens: int
    references: bool = True  # Other tools quantize it too.
    text: Path = None
    calibration: Path = None
    calibration_ids: Path = None

    def prepare(self, heldout, calibration, work):
        """Cuts both texts to whole windows, so that every tool sees the same tokens: and a few more, for the last one may
        become another where the text is cut."""
        tokenizer = tokenizers.Tokenizer.from_file(str(self.model / "tokenizer.json"))

        def cut(source, tokens, name):
            text = source.read_text(encoding="utf-8")
            encoding = tokenizer.encode(text, add_special_tokens=False)
            tokens = min(tokens, (len(encoding.ids) // WINDOW - 1) * WINDOW)
            target = work / f"{self.name}-{name}.txt"
            target.write_text(text[: encoding.offsets[tokens + 8][0]], encoding="utf-8")
            return target, encoding.ids[:tokens]

        self.text, ids = cut(heldout, self.windows * WINDOW, "text")
        self.windows = len(ids) // WINDOW
        self.calibration, ids = cut(calibration, self.calibration_tokens, "calibration")
        self.calibration_tokens = len(ids)
        self.calibration_ids = work / f"{self.name}-calibration.json"
        self.calibration_ids.write_text(json.dumps(ids))

    def recipe(self, zero, method=""):
        return ":".join(filter(None, ["INT4", f"g{self.group}", zero, method]))


@dataclasses.dataclass
class Setting:
    worker: Worker
    llama: Llama
    run: Runner
    work: Path
    environments: dict  # Name of a reference to its python.
    vllm: Path
    threads: int


def percent(value, base):
    return 100 * (value / base - 1)


def table(title, rows):
    """`rows` are dictionaries with the same keys."""
    print(f"\n## {title}\n")
    if not rows:
        print("nothing was measured")
        return
    header = list(rows[0])
    text = [[cell(row.get(key)) for key in header] for row in rows]
    widths = [max(len(line[i]) for line in [header, *text]) for i in range(len(header))]
    for line in [header, ["-" * width for width in widths], *text]:
        print("| " + " | ".join(part.ljust(width) for part, width in zip(line, widths)) + " |")
    print(flush=True)


def cell(value):
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


def attempt(what, function, *arguments):
    """The function's value; None and a line that says why where it cannot be had."""
    try:
        return function(*arguments)
    except Skip as reason:
        print(f"left out: {what}: {reason}", flush=True)
        return None


def methods(setting, subject):
    """INT4 by our methods and by the reference tools, all scored by score.py; our own evaluator's figures beside ours."""
    candidates, own = {}, {}
    for zero in ("symmetric", "integer"):
        recipes = {name: subject.recipe(zero, method) for name, method in (("RTN", ""), ("AWQ", "awq"), ("GPTQ", "gptq"))}
        for name, recipe in recipes.items():
            output = setting.work / f"{subject.name}-{recipe.replace(':', '-')}"
            if attempt(recipe, ours, setting, subject, recipe, output) is not None:
                candidates[f"ours {name}/{zero}"] = output
        scored = attempt("our evaluator", lambda: setting.worker.evaluate(
            subject.model, ["BF16", *recipes.values()], subject.text, "--activations", "bf16",
            "--calibration", subject.calibration, "--calibration-tokens", subject.calibration_tokens))
        own |= {f"ours {name}/{zero}": (scored or {}).get(recipe) for name, recipe in recipes.items()}
    for name, environment, tool, symmetric in REFERENCES if subject.references else []:
        zero = "symmetric" if symmetric else "integer"
        output = setting.work / f"{subject.name}-{tool}-{zero}"
        if attempt(f"{name} {zero}", reference, setting, subject, environment, tool, symmetric, output) is not None:
            candidates[f"{name}/{zero}"] = output / "dequantized"
    pairs = [f"{name}={path}" for name, path in candidates.items()]
    ran = setting.run(setting.environments["base"], HERE / "score.py", subject.model, "--text", subject.text,
                      "--windows", subject.windows, "--threads", setting.threads, *pairs)
    scores = json.loads(ran.output)
    base = scores["BF16"]["perplexity"]
    rows = []
    for name, found in scores.items():
        method, _, zero = name.partition("/")
        rtn = scores.get(f"ours RTN/{zero}")
        cut = 1 - (found["perplexity"] - base) / (rtn["perplexity"] - base) if zero and rtn else None
        # A model that hardly minds 4 bits has an increase below the text's noise; the divergence still tells methods apart.
        kld_cut = 1 - found["kld"] / rtn["kld"] if zero and rtn else None
        mine = own.get(name)
        rows.append({
            "method": method, "zero point": zero, "perplexity": found["perplexity"],
            "perplexity noise": found["noise"], "increase %": round(percent(found["perplexity"], base), 3), "mean KLD": found["kld"],
            "cut of RTN's increase": None if cut is None else round(cut, 3),
            "cut of RTN's KLD": None if kld_cut is None else round(kld_cut, 3),
            "our evaluate: perplexity": mine and mine["perplexity"], "our evaluate: KLD": mine and mine["kld"],
        })
    table(f"INT4 in groups of {subject.group}: {subject.name}, {subject.windows} windows of {WINDOW}", rows)
    return {"rows": rows, "targets": method_targets(rows, base) if subject.references else own_targets(rows)}


def own_targets(rows):
    """What our methods must reach where no other tool was asked for."""
    cut = {(row["method"], row["zero point"]): row["cut of RTN's increase"] for row in rows}
    return {f"{zero} {method} below RTN": None if cut.get((f"ours {method}", zero)) is None else cut[f"ours {method}", zero] > 0
            for zero in ("symmetric", "integer") for method in ("AWQ", "GPTQ")}


def method_targets(rows, base):
    """What the methods must reach, by zero point; None where a side was not measured. Of two roundings of one model the
    perplexities count as equal within the standard error of the rise; the divergence has far less noise and no allowance."""
    targets = {}
    for zero in ("symmetric", "integer"):
        found = {row["method"]: row for row in rows if row["zero point"] == zero}
        cut = lambda name: found.get(name, {}).get("cut of RTN's increase")
        others = {method: {name: row for name, row in found.items() if name.endswith(method) and not name.startswith("ours")}
                  for method in ("GPTQ", "AWQ")}
        gptq, mine = cut("ours GPTQ"), found.get("ours AWQ")
        targets[zero] = {"GPTQ cuts 30 %": None if gptq is None else gptq >= 0.3}
        for measure, key in (("perplexity", "cut of RTN's increase"), ("KLD", "cut of RTN's KLD")):
            best = max((row[key] for row in others["AWQ"].values()), default=None)
            noise = mine and key.endswith("increase") and mine["perplexity noise"] / (found["ours RTN"]["perplexity"] - base)
            targets[zero][f"AWQ cuts 0.9 of the best reference, {measure}"] = (
                None if None in (mine, best) else mine[key] >= 0.9 * best - noise)
        for method, references in others.items():
            mine = found.get(f"ours {method}")
            for name, row in references.items():
                targets[zero][f"{method} no worse than {name}"] = mine and (
                    mine["perplexity"] <= row["perplexity"] + row["perplexity noise"] and mine["mean KLD"] <= row["mean KLD"])
            if not references:
                targets[zero][f"{method} no worse than a reference"] = None
    return targets


def ours(setting, subject, recipe, output):
    made = setting.worker.quantize(subject.model, recipe, subject.calibration, subject.calibration_tokens)
    shutil.rmtree(output, ignore_errors=True)
    setting.worker.export_hub(made.directory, output)
    return made


def reference(setting, subject, environment, tool, symmetric, output):
    python = setting.environments.get(environment)
    if python is None:
        raise Skip(f"{environment} is not installed")
    if not (output / "dequantized" / "model.safetensors").exists():
        setting.run(python, HERE / "reference.py", tool, subject.model, output, "--group", subject.group, "--tokens",
                    subject.calibration_ids, "--sequence", WINDOW, "--threads", setting.threads,
                    *(["--symmetric"] if symmetric else []))
    return output


def gguf(setting, subject):
    """GGUF files of ours beside llama-quantize's from one BF16 file, scored by llama-perplexity."""
    work, llama, worker = setting.work, need_llama(setting), setting.worker
    source, logits, imatrix = (work / f"{subject.name}{end}" for end in ("-BF16.gguf", ".logits", ".imatrix"))
    llama.convert(subject.model, source)
    base = llama.base(source, subject.text, logits)
    llama.imatrix(source, subject.calibration, subject.calibration_tokens // WINDOW, imatrix)
    rows = []
    for kind, matrix in [*((kind, None) for kind in GGUF_TYPES), *((kind, imatrix) for kind in IMATRIX_TYPES)]:
        found = {}
        for who, quantize in (("llama.cpp", lambda out: llama.quantize(source, kind, out, matrix)),
                              ("ours", lambda out: worker.export_gguf(subject.model, kind, out, matrix))):
            output = work / f"{subject.name}-{who}-{kind}{'-imatrix' if matrix else ''}.gguf"
            found[who] = attempt(f"{who} {kind}", lambda: (quantize(output), llama.compare(output, subject.text, logits))[1])
        theirs, mine = found["llama.cpp"], found["ours"]
        ratio = lambda key: mine[key] / theirs[key] if mine and theirs and theirs[key] else None
        rows.append({
            "type": kind, "importance": "yes" if matrix else "no",
            "llama.cpp perplexity": theirs and theirs["perplexity"], "ours": mine and mine["perplexity"],
            "ratio": ratio("perplexity"), "llama.cpp KLD": theirs and theirs["kld"], "our KLD": mine and mine["kld"],
            "KLD ratio": ratio("kld"),
        })
    table(f"GGUF by llama-perplexity: {subject.name}, BF16 {base['perplexity']:.4f}", rows)
    def good(row):
        if row["ratio"] is None:
            return None
        # With an importance matrix: no worse; the perplexity of one text may move by a thousandth either way.
        most = (1.001, 1.0) if row["importance"] == "yes" else (1.02, 1.02)
        return row["ratio"] <= most[0] and row["KLD ratio"] <= most[1]

    return {"base": base["perplexity"], "rows": rows, "targets": {
        row["type"] + (" imatrix no worse" if row["importance"] == "yes" else " within 2 %"): good(row) for row in rows}}


def int8(setting, subject):
    """SmoothQuant and LLM.int8 beside BF16 and plain INT8, by our evaluator, activations quantized as served."""
    names = {"INT8": "INT8", "SmoothQuant": "INT8:smoothquant", "LLM.int8": "INT8:llm-int8"}
    scores = setting.worker.evaluate(subject.model, ["BF16", *names.values()], subject.text, "--calibration",
                                     subject.calibration, "--calibration-tokens", subject.calibration_tokens)
    base = scores["BF16"]["perplexity"]
    rows = [{"method": "BF16", "perplexity": base, "increase %": 0.0, "mean KLD": 0.0}]
    rows += [{"method": name, "perplexity": scores[recipe]["perplexity"],
              "increase %": round(percent(scores[recipe]["perplexity"], base), 3), "mean KLD": scores[recipe]["kld"]}
             for name, recipe in names.items() if recipe in scores]
    table(f"INT8: {subject.name}", rows)
    return {"rows": rows, "targets": {row["method"] + " within 1 %": row["increase %"] <= 1 for row in rows[2:]}}


def agreement(setting, subject):
    """Our evaluator beside llama-perplexity: on BF16, on files of llama.cpp that ours reads, and, for the divergence, on one
    model of rounded weights that both compute without rounding activations."""
    work, llama, worker = setting.work, need_llama(setting), setting.worker
    source, logits = work / f"{subject.name}-BF16.gguf", work / f"{subject.name}.logits"
    if not source.exists():
        llama.convert(subject.model, source)
    rows = []

    def add(model, theirs, mine):
        both = lambda key: theirs and mine and theirs[key] and mine[key]
        ratio = lambda key: round(percent(mine[key], theirs[key]), 3) if both(key) else None
        rows.append({
            "model": model, "llama-perplexity": theirs and theirs["perplexity"], "our evaluate": mine and mine["perplexity"],
            "difference %": ratio("perplexity"), "llama-perplexity KLD": theirs and theirs["kld"],
            "our KLD": mine and mine["kld"], "KLD difference %": ratio("kld"),
        })

    bf16 = attempt("our evaluate of BF16", lambda: worker.evaluate(source, ["BF16"], subject.text)["BF16"])
    add("BF16", llama.base(source, subject.text, logits), bf16)
    for kind in ("Q8_0", "Q4_1"):
        file = work / f"{subject.name}-llama.cpp-{kind}.gguf"
        if not file.exists():
            llama.quantize(source, kind, file)
        theirs = attempt(f"llama-perplexity {kind}", llama.compare, file, subject.text, logits)
        # One file has nothing to diverge from.
        mine = attempt(f"our evaluate of {kind}", lambda: worker.evaluate(file, ["BF16"], subject.text)["BF16"])
        add(f"llama.cpp's {kind}", theirs, mine and mine | {"kld": None})
    recipe = subject.recipe("integer")
    add(f"our {recipe}, dequantized", *rounded(setting, subject, recipe, logits))
    table(f"Our evaluator beside llama-perplexity: {subject.name}", rows)
    within = lambda row, key: None if row[key] is None else abs(row[key]) <= 1
    targets = {f"{row['model']} perplexity within 1 %": within(row, "difference %") for row in rows}
    targets[f"{rows[-1]['model']} KLD within 1 %"] = within(rows[-1], "KLD difference %")
    return {"rows": rows, "targets": targets}


def rounded(setting, subject, recipe, logits):
    """What llama-perplexity and our evaluator say of the same rounded weights: it reads them dequantized to FP32."""
    work, llama = setting.work, need_llama(setting)
    ours(setting, subject, recipe, work / f"{subject.name}-agreement")
    plain, file = work / f"{subject.name}-agreement-plain", work / f"{subject.name}-agreement-F32.gguf"
    setting.run(setting.environments["base"], HERE / "score.py", subject.model, "--dequantize", plain,
                f"rounded={work / f'{subject.name}-agreement'}")
    llama.convert(plain, file, "f32")
    theirs = attempt("llama-perplexity of rounded weights", llama.compare, file, subject.text, logits)
    mine = attempt("our evaluate of rounded weights", lambda: setting.worker.evaluate(
        subject.model, ["BF16", recipe], subject.text, "--activations", "bf16")[recipe])
    return theirs, mine


def memory(setting, subject):
    """Peak memory and speed of each method, from an empty cache."""
    bf16 = sum(file.stat().st_size for file in subject.model.glob("*.safetensors"))
    limit = bf16 / 4 + 300e6
    recipes = ["FP8", "INT8", "INT8:smoothquant", "INT8:llm-int8",
               *(subject.recipe("symmetric", method) for method in ("", "awq", "gptq"))]
    shutil.rmtree(setting.worker.cache, ignore_errors=True)
    rows = []
    for recipe in recipes:
        made = attempt(recipe, setting.worker.quantize, subject.model, recipe, subject.calibration, subject.calibration_tokens)
        if made:
            rows.append({"format": recipe, "peak MB": round(made.peak_bytes / 1e6), "limit MB": round(limit / 1e6),
                         "seconds": round(made.seconds, 1), "M parameters/s": round(made.parameters_s / 1e6, 3)})
    table(f"Quantizing {subject.name} ({bf16 / 1e6:.0f} MB in BF16)", rows)
    return {"rows": rows, "targets": {
        f"{row['format']} below 25 % + 300 MB": row["peak MB"] <= row["limit MB"] for row in rows}}


def engines(setting, subject):
    """vLLM loads our compressed-tensors directories and generates; what it answers beside what it answers in BF16."""
    if setting.vllm is None:
        raise Skip("vLLM was left out with --without vllm")
    python, rows, bases = setting.vllm / "bin" / "python", [], {}
    # vLLM's FP8 product on a CPU is PyTorch's reference (`torch._scaled_mm`): 500 tokens took this model over five minutes.
    sizes = {False: (400, 16), True: (40, 4)}

    def answers(directory, size):
        lines = setting.run(python, HERE / "vllm_run.py", directory, subject.text, *size).output.splitlines()
        # It logs after the end, too.
        return json.loads(next(line for line in reversed(lines) if line.startswith("[[")))

    # What vLLM makes of another tool's FP8 tells whether it is our files that it minds.
    other = "FP8 of llm-compressor"
    for recipe in ["BF16", "INT8", subject.recipe("symmetric"), subject.recipe("integer"), "FP8", other]:
        directory = subject.model
        if recipe == other:
            directory = attempt(other, reference, setting, subject, "llmcompressor", "llmcompressor-fp8", True,
                                setting.work / f"{subject.name}-llmcompressor-fp8")
            if directory is None:
                continue
        elif recipe != "BF16":
            directory = setting.work / f"{subject.name}-vllm-{recipe.replace(':', '-')}"
            if attempt(recipe, ours, setting, subject, recipe, directory) is None:
                continue
        try:
            size = sizes[recipe.startswith("FP8")]
            base = bases.get(size) or bases.setdefault(size, answers(subject.model, size))
            answer = base if recipe == "BF16" else answers(directory, size)
        except Skip as reason:
            rows.append({"format": recipe, "vLLM": "no", "same greedy tokens as BF16": None, "note": str(reason)[:80]})
            continue
        same = sum(a == b for one, two in zip(answer, base) for a, b in zip(one, two))
        rows.append({"format": recipe, "vLLM": "runs", "note": "",
                     "same greedy tokens as BF16": f"{same} of {sum(map(len, base))}"})
    table(f"vLLM on the CPU with our directories: {subject.name}", rows)
    return {"rows": rows, "targets": {f"vLLM runs {row['format']}": row["vLLM"] == "runs" for row in rows if row["format"] != other}}


def need_llama(setting):
    if setting.llama is None:
        raise Skip("llama.cpp was left out with --without llama")
    return setting.llama


SECTIONS = {"methods": methods, "gguf": gguf, "int8": int8, "agreement": agreement, "memory": memory, "engines": engines}
