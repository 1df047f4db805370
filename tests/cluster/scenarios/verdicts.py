"""Manifests and their verdicts: edits of a minimal one, as manifests.py applies them, by rule."""


def window(**more: object) -> dict:
    return {"name": "w", "profile": "density", "start": "08:00", "end": "09:00", **more}


def windows(*windows: dict, **more: object) -> dict:
    return {"switching/schedule": {"windows": list(windows), **more}}


def ladder(count: int) -> list[dict]:
    return [{"name": f"p{number}", "weights": {"format": "FP8"}} for number in range(count)]


def entries(count: int) -> dict:
    return {f"key-{number}": "1" for number in range(count)}


OTHER_ENGINE = {"engine/type": "VLLM", "switching/strategy": "Surge"}

GOOD: dict[str, dict] = {
    "minimal": {},
    "defaults for nothing": {"switching": None, "scaling": None, "engine": None, "quality": None, "placement": None, "cache": None},
    "empty groups": {"switching": {}, "scaling": {}, "engine": {}, "quality": {}, "placement": {}, "cache": {}},
    "every field": {
        "model": {
            "uri": "hf://org/name", "revision": "main", "servedName": "chat", "maxContextTokens": 16,
            "tokenSecretRef": {"name": "hub", "key": "token"}, "license": {"accepted": "apache-2.0"},
        },
        "engine": {
            "type": "Native", "image": "worker:1", "imagePullSecrets": [{"name": "registry"}], "args": ["--a=b", ""],
            "env": [{"name": "A", "value": ""}, {"name": "B", "secretKeyRef": {"name": "s", "key": "k"}}],
        },
        "profiles": [
            {
                "name": "a", "weights": {"format": "INT4", "method": "AWQ", "groupSize": 64, "zeroPoint": "Integer"},
                "kvCache": {"format": "FP8E4M3"}, "tensorParallel": 1,
            },
            {"name": "b-2", "weights": {"format": "INT8", "method": "SmoothQuant"}, "kvCache": {"format": "FP8E4M3"}},
        ],
        "switching": {
            "mode": "Pinned", "pinnedProfile": "b-2", "strategy": "InPlace", "prefer": "Scale",
            "targets": {"kvCacheUtilizationPercent": 1, "queueTimeSeconds": "0.5", "timeToFirstTokenSeconds": 3},
            "toDensity": {"stabilizationWindowSeconds": 0}, "toQuality": {"stabilizationWindowSeconds": 0, "pressureBelowPercent": 99},
            "minDwellSeconds": 0, "maxSwitchesPerHour": 240,
            "schedule": {
                "timeZone": "Europe/Paris",
                "windows": [{"name": "night", "profile": "a", "days": ["Sun", "Mon"], "start": "22:00", "end": "05:00"}],
            },
        },
        "scaling": {
            "mode": "External", "minReplicas": 1, "maxReplicas": 1000, "replicas": 0,
            "scaleDown": {"stabilizationWindowSeconds": 86400},
        },
        "quality": {
            "maxPerplexityIncreasePercent": 0, "maxMeanKLDivergence": "0.05", "onFailure": "Warn",
            "dataset": {"uri": "pvc://texts/text.txt", "maxTokens": 16, "contextTokens": 16},
        },
        "placement": {
            "acceleratorResource": "nvidia.com/gpu", "nodeSelector": {"zone": "a"}, "runtimeClassName": "nvidia",
            "memoryBudget": "76Gi",
            "tolerations": [
                {"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 5},
                {"operator": "Exists"},
            ],
            "affinity": {"nodeAffinity": {"anything": [1, {"a": None}]}},
            "resources": {"requests": {"cpu": 2, "memory": "1Gi"}, "limits": {"memory": "1024Mi"}},
        },
        "cache": {"persistentVolumeClaim": "models", "keepOriginal": False},
        "apiKeysSecretRef": {"name": "keys"},
    },
    "claim": {"model/uri": "pvc://models/a/b.gguf"},
    "relative file": {"model/uri": "file://./a.gguf"},
    "web": {"model/uri": "https://example.org/a.gguf"},
    "dots in a path that climb nowhere": {"model/uri": "file:///models/..a/b..gguf"},
    "longest name": {"/metadata/name": "a" * 63},
    "longest profile name": {"profiles/0/name": "a" * 63},
    "four profiles": {"profiles": ladder(4)},
    "every method": {"profiles": [
        {"name": name.lower(), "weights": {"format": format, "method": name}}
        for name, format in (("AWQ", "INT4"), ("GPTQ", "INT8"), ("SmoothQuant", "INT8"), ("LLMInt8", "INT8"))
    ]},
    "GPTQ of 4 bits": {"profiles/1/weights/method": "GPTQ"},
    "path of two lines": {"model/uri": "file:///a\nb"},
    "longest owner": {"model/uri": f"hf://{'a' * 96}/..b_c"},
    "path of the web that climbs": {"model/uri": "https://example.org/a/../b.gguf"},
    "names that are no ASCII": {"model/servedName": "modèle-語", "model/license": {"accepted": "llama3.3, autre"}},
    "target below one": {"switching/targets": {"queueTimeSeconds": "0.01", "timeToFirstTokenSeconds": "007"}},
    "another engine": {**OTHER_ENGINE, "profiles/0/kvCache": {"format": "FP16"}, "profiles/1/tensorParallel": 64},
    "a mixture of llama.cpp": {"engine/type": "LlamaCpp", "switching/strategy": "Recreate", "profiles/0/weights/format": "Q5_K_M"},
    "in pods of its own": {"switching/strategy": "Surge", "profiles/1/kvCache": {"format": "FP16"}},
    "a pin without the mode": {"switching/pinnedProfile": "density"},
    "neighbours across the end of the week": windows(
        window(days=["Sun"], start="22:00", end="06:00"), window(name="v", days=["Mon"], start="06:00", end="24:00"),
    ),
    "no days": windows(window(days=[])),
    "whole numbers": {
        "placement/memoryBudget": 8000000000, "quality/maxMeanKLDivergence": 1, "placement/resources": {"limits": {"cpu": 2}},
    },
    "quantities": {"placement/resources": {"limits": {
        "cpu": "1500m", "memory": "1.5Gi", "x.org/a": "8e9", "x.org/b": "1E", "x.org/c": ".5", "x.org/d": "+1", "x.org/e": "1.",
    }}},
    "a budget in exponents": {"placement/memoryBudget": "8e9"},
    "request without limit": {"placement/resources": {"requests": {"memory": "2Gi"}, "limits": {"cpu": "1"}}},
    "request at its limit": {"placement/resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "1000m"}}},
    "directory with a limit": {"cache/emptyDir": {"sizeLimit": "10Gi"}},
    "directory": {"cache/emptyDir": {}},
    "on the node": {"cache/hostPath": "/var/cache/..models"},
    "a toleration of all": {"placement/tolerations": [{"operator": "Exists", "value": ""}]},
    "a runtime class of nothing": {"placement/runtimeClassName": ""},
}

BAD: dict[str, dict] = {
    # Structure.
    "unknown group": {"placment": {}},
    "unknown field": {"profiles/0/weights/groupsize": 64},
    "number for text": {"model/revision": 6012},
    "text for number": {"scaling/maxReplicas": "4"},
    "text for truth": {"cache/keepOriginal": "yes"},
    "fraction": {"scaling/maxReplicas": 1.5},
    "list for fields": {"placement/affinity": []},
    "fields for list": {"profiles": {"a": {}}},
    "no model": {"model": {}},
    "no format": {"profiles/0/weights": {}},
    "no weights": {"profiles": [{"name": "a"}]},
    "no name": {"profiles": [{"weights": {"format": "FP8"}}]},
    "half a reference": {"model/tokenSecretRef": {"name": "a"}},
    "empty reference": {"apiKeysSecretRef": {}},
    "no data set": {"quality/dataset": {}},
    "half a window": windows({"name": "w", "profile": "density", "start": "08:00"}),
    "capital name": {"/metadata/name": "Smol"},
    # Ladder.
    "no profiles": {"profiles": []},
    "five profiles": {"profiles": ladder(5)},
    "same name": {"profiles/1/name": "quality"},
    "profile name": {"profiles/0/name": "High Quality"},
    "profile name too long": {"profiles/0/name": "a" * 64},
    "format": {"profiles/0/weights/format": "fp8"},
    "KV format": {"profiles/0/kvCache": {"format": "FP8"}},
    "method": {"profiles/0/weights/method": "Magic"},
    "zero point": {"profiles/1/weights/zeroPoint": "None"},
    "group size": {"profiles/1/weights/groupSize": 48},
    "no accelerator": {"profiles/0/tensorParallel": 0},
    "too many accelerators": {**OTHER_ENGINE, "profiles/0/tensorParallel": 65},
    # Switching.
    "KV differs in place": {"profiles/1/kvCache": {"format": "FP16"}},
    "accelerators differ in place": {"profiles/1/tensorParallel": 2},
    "another engine in place": {"engine/type": "VLLM"},
    "engine": {"engine/type": "Ollama"},
    "mode": {"switching/mode": "Manual"},
    "pin missing": {"switching/mode": "Pinned"},
    "pin unknown": {"switching": {"mode": "Pinned", "pinnedProfile": "fast"}},
    "percent": {"switching/targets": {"kvCacheUtilizationPercent": 101}},
    "no percent": {"switching/targets": {"kvCacheUtilizationPercent": 0}},
    "fraction without quotes": {"switching/targets": {"queueTimeSeconds": 0.5}},
    "pressure": {"switching/toQuality": {"pressureBelowPercent": 100}},
    "no switches": {"switching/maxSwitchesPerHour": 0},
    "too many switches": {"switching/maxSwitchesPerHour": 241},
    "negative time": {"switching/minDwellSeconds": -1},
    "window of an hour at most": {"switching/toDensity": {"stabilizationWindowSeconds": 3601}},
    # Schedule.
    "no windows": windows(),
    "too many windows": windows(*(
        # Half an hour each: 33 of them do not overlap.
        window(name=f"w{n}", start=f"{n // 2:02}:{n % 2 * 30:02}", end=f"{n // 2:02}:{n % 2 * 30 + 20:02}") for n in range(33)
    )),
    "time": windows(window(start="8:00")),
    "time without quotes": windows(window(start=800)),
    "25 o'clock": windows(window(end="25:00")),
    "day": windows(window(days=["Monday"])),
    "day twice": windows(window(days=["Mon", "Mon"])),
    "window names": windows(window(), window(start="10:00", end="11:00")),
    "window name": windows(window(name="Night Shift")),
    "window profile": windows(window(profile="fast")),
    "no zone": windows(window(), timeZone=""),
    # The rest.
    "no scheme": {"model/uri": "models/model.gguf"},
    "scheme": {"model/uri": "s3://bucket/model"},
    "address too long": {"model/uri": "file:///" + "a" * 1020},
    "no context": {"model/maxContextTokens": 15},
    "context": {"model/maxContextTokens": 16777217},
    "empty served name": {"model/servedName": ""},
    "empty licence": {"model/license": {"accepted": ""}},
    "variable twice": {"engine/env": [{"name": "A"}, {"name": "A"}]},
    "variable without a name": {"engine/env": [{"name": ""}]},
    "too many arguments": {"engine/args": ["a"] * 65},
    "argument too long": {"engine/args": ["a" * 1025]},
    "empty image": {"engine/image": ""},
    "too many pull secrets": {"engine/imagePullSecrets": [{"name": "a"}] * 9},
    "none at least": {"scaling/minReplicas": 0},
    "min above max": {"scaling": {"minReplicas": 3, "maxReplicas": 2}},
    "min above max by default": {"scaling": {"minReplicas": 2}},
    "too many workers": {"scaling/maxReplicas": 1001},
    "negative workers": {"scaling": {"mode": "External", "replicas": -1}},
    "divergence without quotes": {"quality/maxMeanKLDivergence": 0.1},
    "perplexity": {"quality/maxPerplexityIncreasePercent": 1001},
    "too much text": {"quality/dataset": {"uri": "file:///t", "maxTokens": 4294967295}},
    "short windows of text": {"quality/dataset": {"uri": "file:///t", "contextTokens": 15}},
    "too many labels": {"placement/nodeSelector": entries(33)},
    "label of a node": {"placement/nodeSelector": {"a": 1}},
    "too many tolerations": {"placement/tolerations": [{"operator": "Exists"}] * 33},
    "effect": {"placement/tolerations": [{"operator": "Exists", "effect": "Never"}]},
    "operator": {"placement/tolerations": [{"key": "a", "operator": "In"}]},
    "too many resources": {"placement/resources": {"limits": entries(17)}},
    "resource of a list": {"placement/resources": {"limits": {"cpu": []}}},
    "two caches": {"cache": {"hostPath": "/cache", "emptyDir": {}}},
    "relative path": {"cache/hostPath": "cache"},
    "empty claim": {"cache/persistentVolumeClaim": ""},
    # Rules between fields and of their contents.
    "number with a fraction of nothing": {"scaling/maxReplicas": 2.0},
    "huge": {"scaling/maxReplicas": 99999999999999999999},
    "method of INT4": {"profiles/0/weights/method": "AWQ"},
    "method of INT8": {"profiles/1/weights/method": "LLMInt8"},
    "GPTQ of FP8": {"profiles/0/weights/method": "GPTQ"},
    "group of FP8": {"profiles/0/weights/groupSize": 64},
    "zero point of FP8": {"profiles/0/weights/zeroPoint": "Integer"},
    "target that is no time": {"switching/targets": {"queueTimeSeconds": "soon"}},
    "target of nothing": {"switching/targets": {"queueTimeSeconds": ""}},
    "target in exponents": {"switching/targets": {"queueTimeSeconds": "1e3"}},
    "target zero": {"switching/targets": {"timeToFirstTokenSeconds": 0}},
    "target zero in quotes": {"switching/targets": {"timeToFirstTokenSeconds": "0.0"}},
    "negative target": {"switching/targets": {"timeToFirstTokenSeconds": -1}},
    "start at the end of the day": windows(window(start="24:00")),
    "empty window": windows(window(end="08:00")),
    "path up": {"model/uri": "file:///models/../etc"},
    "path up in Windows": {"model/uri": "file:///models\\..\\etc"},
    "file of no path": {"model/uri": "file://"},
    "file of a host": {"model/uri": "file://models/a.gguf"},
    "repository without owner": {"model/uri": "hf://llama"},
    "repository of three": {"model/uri": "hf://a/b/c"},
    "repository that climbs": {"model/uri": "hf://../b"},
    "repository that stays": {"model/uri": "hf://a/."},
    "owner too long": {"model/uri": f"hf://{'a' * 97}/b"},
    "claim without a path": {"model/uri": "pvc://models"},
    "capital claim": {"model/uri": "pvc://Models/x"},
    "claim that climbs": {"model/uri": "pvc://models/../../etc/passwd"},
    "host without a path": {"model/uri": "https://example.org"},
    "character that ends a path": {"model/uri": "file:///a\0b"},
    "revision of a file": {"model/revision": "main"},
    "revision with a space": {"model": {"uri": "hf://a/b", "revision": "a b"}},
    "served name with a space": {"model/servedName": "a b"},
    "served name with another space": {"model/servedName": "a\u2003b"},
    "served name with a bell": {"model/servedName": "a\ab"},
    "blank licence": {"model/license": {"accepted": " \u2003\t"}},
    "variable with =": {"engine/env": [{"name": "A=B"}]},
    "variable with a line": {"engine/env": [{"name": "A\nB"}]},
    "variable of both": {"engine/env": [{"name": "A", "value": "", "secretKeyRef": {"name": "s", "key": "k"}}]},
    "divergence": {"quality/maxMeanKLDivergence": "low"},
    "divergence of half a number": {"quality/maxMeanKLDivergence": "1."},
    "negative divergence": {"quality/maxMeanKLDivergence": -1},
    "data set": {"quality/dataset": {"uri": "wikitext"}},
    "data set that climbs": {"quality/dataset": {"uri": "file:///models/../etc"}},
    "budget": {"placement/memoryBudget": "76GB"},
    "budget of nothing": {"placement/memoryBudget": ""},
    "budget zero": {"placement/memoryBudget": 0},
    "budget zero in units": {"placement/memoryBudget": "0Gi"},
    "negative budget": {"placement/memoryBudget": "-1Gi"},
    "resource": {"placement/resources": {"limits": {"cpu": "two"}}},
    "resource with a space": {"placement/resources": {"limits": {"memory": "5 Gi"}}},
    "resource with half an exponent": {"placement/resources": {"requests": {"memory": "1e"}}},
    "resource below nothing": {"placement/resources": {"requests": {"cpu": -1}}},
    "resource below nothing in quotes": {"placement/resources": {"requests": {"cpu": "-1"}}},
    "toleration value": {"placement/tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]},
    "toleration key": {"placement/tolerations": [{"value": "b"}]},
    "toleration of the empty key": {"placement/tolerations": [{"key": "", "value": "b"}]},
    "directory up": {"cache/hostPath": "/cache/../etc"},
    "directory above": {"cache/hostPath": "/.."},
    "size limit": {"cache/emptyDir": {"sizeLimit": "much"}},
    "name that starts with a digit": {"/metadata/name": "7b"},
    "name with a dot": {"/metadata/name": "a.b"},
    "name too long": {"/metadata/name": "a" * 64},
}

ONLY_VALIDATE: list[tuple[str, dict[str, dict]]] = [
    ("The API server drops a field without a value; most likely its user forgot one.", {
        "no value": {"model/servedName": None},
    }),
    ("Which time zones there are, each program's own data tell.", {
        "zone": windows(window(), timeZone="Mars/Base"),
    }),
    ("To compare 32 windows of 7 days with each other costs more than a rule may.", {
        "overlap": windows(window(), window(name="v", start="08:30", end="10:00")),
        "overlap across midnight": windows(
            window(days=["Mon"], start="22:00", end="06:00"), window(name="v", days=["Tue"], start="05:00", end="07:00"),
        ),
        "overlap across the week": windows(
            window(days=["Sun"], start="22:00", end="06:00"), window(name="v", days=["Mon"], start="05:00", end="07:00"),
        ),
    }),
    ("To read two amounts for each of 16 resources costs twice what a rule may.", {
        "request above its limit": {"placement/resources": {"limits": {"memory": "1Gi"}, "requests": {"memory": "2Gi"}}},
    }),
    ("A pattern does not know how much 64 bits hold.", {
        "limit beyond all memory": {"placement/resources": {"limits": {"memory": "99E"}}},
    }),
]
"""Rules that the API server can not check, with the reason: it takes these, and the operator refuses them by a condition."""

SUPPORT: dict[str, dict] = {
    "FP16": {"profiles/0/weights/format": "FP16"},
    "mixture": {"profiles/0/weights/format": "Q5_K_M"},
    "accelerators differ": {"switching/strategy": "Surge", "profiles/1/tensorParallel": 2},
}
"""Part of the API, and not built yet: a definition that refused them would have to change with the worker's version."""
