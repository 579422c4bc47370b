#!/usr/bin/env bash
# Run one command of the pipeline in a container; the Makefile calls it with RUN_IN=docker.
#
#     docker/run.sh data|train [--llm LLM.YAML [--export EXPORT.YAML] [--pull]] [--publish PORT] COMMAND...
#         in that image, which is built first if docker/ or requirements/ changed. The command asks the language model, or
#         with --export the finished one: if these settings mean the Ollama in the container, it is started. --pull: the
#         language model is fetched. --publish: this port of it is one of this machine, for nobody else
#     docker/run.sh build                     both images
#     docker/run.sh down                      stop what was started; the models stay
#
# GPU: index of the card, or none; CHINESE: not empty if mistakes are told in Chinese; HUIYIN_MOUNT: one more file that the
# command may read; BASE_IMAGE and OLLAMA_IMAGE: other places to fetch those images from.
set -euo pipefail
cd -P "$(dirname "$0")/.."

fail() {
    local line=$1
    [ -z "${CHINESE:-}" ] || line=$(python3 huiyin/common/chinese.py "$1") || line=$1
    echo "docker: $line" >&2
    exit 1
}
quiet() { "$@" > /dev/null 2>&1; }

export REPOSITORY=$PWD GPU=${GPU:-none} HOST_UID HOST_GID PIPELINE_MEMORY PIPELINE_IMAGE
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-huiyin} COMPOSE_PROGRESS=${COMPOSE_PROGRESS:-quiet}
HOST_UID=$(id -u) HOST_GID=$(id -g) PIPELINE_IMAGE=huiyin-data
BASE_IMAGE=${BASE_IMAGE:-$(sed -n 's/^ARG BASE_IMAGE=//p' docker/Dockerfile)}
OLLAMA_IMAGE=${OLLAMA_IMAGE:-$(sed -n 's/.*{OLLAMA_IMAGE:-\(.*\)}/\1/p' docker/compose.yaml)}

# ---- Is there an engine, and may we use it?
check_engine() {
    local answer wsl="Docker is not connected to this WSL: Docker Desktop, Settings, Resources, WSL integration, switch this distribution on"
    if ! quiet command -v docker; then
        [ -z "${WSL_DISTRO_NAME:-}" ] || fail "$wsl; or add RUN_IN=host"
        fail "there is no Docker here: install it (see 'Docker' in README.md), or add RUN_IN=host"
    fi
    if ! answer=$(docker version --format '{{.Server.Version}}' 2>&1); then
        case $answer in
            *"WSL 2 distro"*) fail "$wsl; or add RUN_IN=host" ;;
            *"permission denied"*) fail "Docker does not let you in: sudo usermod -aG docker \$USER, then log in again" ;;
            *) fail "Docker's daemon does not answer: start it (sudo systemctl start docker, or Docker Desktop), or add RUN_IN=host" ;;
        esac
    fi
    # Docker may have less memory than this machine; and where it is rootless, its root is the caller.
    answer=$(docker info --format '{{.MemTotal}} {{.SecurityOptions}}')
    PIPELINE_MEMORY=$((${answer%% *} / 10 * 9))
    case $answer in *rootless*) HOST_UID=0 HOST_GID=0 ;; esac
    case "${HTTP_PROXY:-}${HTTPS_PROXY:-}${http_proxy:-}${https_proxy:-}" in *127.0.0.1*|*localhost*)
        echo "docker: your proxy is at 127.0.0.1, which inside a container is the container; let it listen for your network and name this machine's address" >&2 ;;
    esac
}

# Sets COMPOSE to the command; with a card, both services get it.
use_compose() {
    if quiet docker compose version; then COMPOSE=(docker compose)
    elif quiet docker-compose version; then COMPOSE=(docker-compose)
    else fail "Docker is here, but Compose is not: sudo apt install docker-compose-v2 (Debian: docker-compose)"; fi
    COMPOSE+=(--file docker/compose.yaml)
    [ "$GPU" = none ] || COMPOSE+=(--file docker/compose.gpu.yaml)
}

# ---- Images. The digest of their recipe is a label of each, so that one is built again when the recipe changes.
recipe_digest() {
    local files=(docker/Dockerfile requirements/base.txt)
    [ "$1" = data ] || files+=(requirements/torch.txt requirements/train.txt requirements/torchaudio/*.py)
    cat "${files[@]}" | sha256sum | cut -c1-16
}

need_image() {
    [ "$(docker image inspect --format '{{index .Config.Labels "huiyin.made-of"}}' "huiyin-$1" 2> /dev/null)" = "$(recipe_digest "$1")" ] || build "$1"
}

build() {
    local name arguments=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
    for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
        [ -z "${!name:-}" ] || arguments+=(--build-arg "$name")
    done
    fetch "$BASE_IMAGE" BASE_IMAGE
    echo "docker: building the image huiyin-$1; docs/containers.md lists what it downloads" >&2
    docker build "${arguments[@]}" --label "huiyin.made-of=$(recipe_digest "$1")" --target "$1" --tag "huiyin-$1" --file docker/Dockerfile . >&2 ||
        fail "the image huiyin-$1 could not be built; if packages could not be fetched: PIP_INDEX_URL names a mirror, HTTPS_PROXY a proxy"
    quiet docker image prune --force --filter label=huiyin.made-of || true  # the one that this one replaces
}

fetch() {
    quiet docker image inspect "$1" || docker pull "$1" >&2 ||
        fail "the image $1 could not be fetched; is the network there? $2=<mirror>/${1%@*} names a mirror, Docker's own settings a proxy"
}

# ---- The card, and Ollama
check_card() {
    local answer
    answer=$(docker run --rm --network none --gpus "\"device=$GPU\"" --entrypoint true "$PIPELINE_IMAGE" 2>&1) && return
    case $answer in
        *"could not select device driver"*) fail "Docker has no access to a graphics card: install the NVIDIA Container Toolkit (see 'Docker' in README.md), or say GPU=none" ;;
        *) fail "Docker has no access to card GPU=$GPU: ${answer##*$'\n'}; nvidia-smi lists the cards, GPU=none works without one" ;;
    esac
}

# start_ollama NAME=value...: with these settings
start_ollama() {
    local container tries
    export OLLAMA_IMAGE "$@"
    fetch "$OLLAMA_IMAGE" OLLAMA_IMAGE
    "${COMPOSE[@]}" up --detach ollama >&2 || fail "Ollama's container does not start; the reason stands above"
    container=$("${COMPOSE[@]}" ps --quiet ollama)
    for tries in {1..60}; do
        case $(docker inspect --format '{{.State.Health.Status}}' "$container") in healthy) return ;; esac
        sleep 1
    done
    fail "Ollama has not come up in $tries seconds; docker logs ${container:0:12} shows its log"
}

# ---- A command
run() {
    local asks=() pull='' settings=() word path link mounts=() options=(--rm --no-deps)
    while :; do
        case $1 in
            --llm|--export) asks+=("$1" "$2"); shift 2 ;;
            --pull) pull=yes; shift ;;
            --publish) options+=(--publish "127.0.0.1:$2:$2"); shift 2 ;;
            *) break ;;
        esac
    done
    declare -A outside=()
    for word in "$@" "${asks[@]}" "${HUIYIN_MOUNT:-}"; do
        # What lies outside the repository is mounted read-only, with what is beside it; of links, each on the way.
        while [ -e "$word" ]; do
            for path in "$(realpath --no-symlinks "$word")" "$(realpath "$word")"; do
                [ -d "$path" ] || path=$(dirname "$path")
                [[ $path/ = "$PWD"/* ]] || outside[$path]=yes
            done
            [ -L "$word" ] || break
            link=$(readlink "$word")
            case $link in /*) word=$link ;; *) word=$(realpath "$(dirname "$word")")/$link ;; esac
        done
    done
    for path in "${!outside[@]}"; do
        [[ $path != *:* ]] || fail "$path: Docker cannot mount a folder with a : in its name; rename it, or link to the file from another one"
        mounts+=(--volume "$path:$path:ro")
    done
    options+=("${mounts[@]}")
    [ -z "${QQ_DB_KEY:-}" ] || options+=(-e QQ_DB_KEY)  # its name only: arguments can be read by everybody
    [[ -t 0 && -t 1 ]] || options+=(-T)

    need_image "${PIPELINE_IMAGE#huiyin-}"
    if [ ${#asks[@]} -gt 0 ]; then
        # its input is not ours: what the user types is for the command
        mapfile -t settings < <(GPU=none; use_compose; "${COMPOSE[@]}" run "${mounts[@]}" --rm --no-deps -T pipeline python scripts/tools/needs.py "${asks[@]}" < /dev/null)
        wait $! || exit 1  # it has printed the reason
    fi
    if [ ${#settings[@]} -gt 0 ]; then
        [ "$GPU" = none ] || check_card
        use_compose
        start_ollama "${settings[@]}"
        [ -z "$pull" ] || "${COMPOSE[@]}" run "${options[@]}" pipeline python scripts/tools/pull.py "${asks[@]}" --ollama-url http://ollama:11434
    elif [ "$PIPELINE_IMAGE" = huiyin-train ] && [ "$GPU" != none ]; then
        check_card
    else
        GPU=none  # nothing here would use it
    fi
    use_compose
    exec "${COMPOSE[@]}" run "${options[@]}" pipeline "$@"
}

check_engine
case $1 in
    data|train) PIPELINE_IMAGE=huiyin-$1; run "${@:2}" ;;
    build) build data; build train ;;
    down) GPU=none; use_compose; exec "${COMPOSE[@]}" down ;;
    *) fail "unknown word $1: data, train, build or down" ;;
esac
