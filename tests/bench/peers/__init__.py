"""This worker beside its peers on one machine: same model, same cores, same load, in interleaved rounds.

    tests/scripts/bench-peers.sh -> options -> plan of tasks -> files -> each task: start, measure, stop -> ratios -> report

| module | what it does | pure |
|---|---|---|
| `contestants` | who there is: engine, format, bits of a weight | yes |
| `rows` | which keys there are, what each compares, what it asks for; ratios out of figures | yes |
| `machine_share` | what of the machine's bandwidth and peaks a figure is | yes |
| `rounds` | the tasks, their order, how long they will take; results that are kept | almost: it reads and writes the kept ones |
| `options` | the command line, and the plan that it asks for | yes |
| `files` | the model in the format that each engine reads, made once | |
| `launch` | how each engine is started | |
| `process` | a server that runs, what it and others use of the machine | |
| `measure` | one server, measured alone | |
| `run` | all tasks; a contestant that fails is named, and the rest goes on | |
| `report` | tables, the closing line, the file | yes |
| `baseline` | `make bench-compare` | yes, but for its files |
| `openvino_server` | OpenVINO GenAI behind the API that the load client speaks | |

The modules that are pure run on any Python 3.9 without a package: `make test` tests them.
"""
