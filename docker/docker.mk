# What the Makefile needs to know of the containers. The work is in docker/run.sh, the services are in compose.yaml.

# Every rule names its environment after the |. Here that is what the image is made of, which docker/run.sh looks after.
base.docker := docker/Dockerfile requirements/base.txt
train.docker := docker/Dockerfile requirements/train.txt
RUN.docker = env -u QQ_DB_KEY GPU=$(GPU) docker/run.sh $(if $(filter %/train.txt,$|),train,data)
ollama.docker := http://ollama:11434
# Of the cards outside only those lent are inside, counted from 0.
comma := ,
blank := $(subst ,, )
gpu.docker = $(if $(filter none,$(GPU)),none,$(subst $(blank),$(comma),$(wordlist 1,$(words $(subst $(comma), ,$(GPU))),0 1 2 3 4 5 6 7)))

# $(origin ...): this Make warns of undefined variables, and that is what this one is anywhere but in WSL.
ifeq ($(RUN_IN)$(filter undefined,$(origin WSL_DISTRO_NAME))$(filter-out /mnt/%,$(CURDIR)),docker)
$(info docker: $(CURDIR) is on a Windows disk: slow from here, and there your results are open to others; move the repository into your Linux home)
endif

build:## the images of the containers
	@docker/run.sh build
shell:## a shell in the container of the data stages
	@$(RUN.docker) bash
down:## stop what the containers started; the models stay
	@docker/run.sh down

.PHONY: build shell down
