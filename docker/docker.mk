# Where a script runs, RUN_IN=host or docker: what differs. The containers' work is in docker/run.sh and compose.yaml.

space := $(subst ,, )

# The environment that each rule names after its |: .venv/ on the host; else what the image is made of, since
# docker/run.sh itself looks after the image, and only when there is something to run.
base.host := .venv/base
train.host := .venv/train
base.docker := docker/Dockerfile requirements/base.txt
train.docker := docker/Dockerfile requirements/train.txt
base = $(base.$(RUN_IN))
train = $(train.$(RUN_IN))
RUN.docker = env -u QQ_DB_KEY GPU=$(GPU)$(if $(chinese), CHINESE=yes) docker/run.sh $(if $(filter %/train.txt,$|),train,data)
with_llm.host :=
with_model.host :=
with_port.host :=
with_llm.docker = $(space)--llm $(call config,llm.yaml) --pull
with_model.docker = $(space)--llm $(call config,llm.yaml) --export $(call config,export.yaml)
with_port.docker = $(space)--publish $(PORT)

# Within a container, 127.0.0.1 would be the container.
listen.host :=
listen.docker := --host 0.0.0.0

ollama.host := http://127.0.0.1:11434
ollama.docker := http://ollama:11434

# A container sees only the cards that it is given, counted from 0.
cards = $(wordlist 1,$(words $(subst $(comma), ,$(GPU))),0 1 2 3 4 5 6 7)
gpu.host = $(GPU)
gpu.docker = $(if $(filter none,$(GPU)),none,$(subst $(space),$(comma),$(cards)))

# WSL_DISTRO_NAME is there in WSL only
ifeq ($(RUN_IN)$(filter undefined,$(origin WSL_DISTRO_NAME))$(filter-out /mnt/%,$(CURDIR)),docker)
$(info docker: $(CURDIR) is on a Windows disk: slow from here, and there your results are open to others; move the repository into your Linux home)
endif

build:## build the images of the containers
	@docker/run.sh build
shell:## open a shell in the container of the data stages
	@$(RUN.docker) bash
down:## stop the containers; the models stay
	@docker/run.sh down

.PHONY: build shell down
