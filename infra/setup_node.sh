#!/bin/sh
# The tested versions in .venv beside this file's project, on a machine that has nothing of it. Run again, it changes nothing.
#
#     sh infra/setup_node.sh head        # notes the head's versions
#     sh infra/setup_node.sh worker      # and refuses others than those
#
# It needs rsync, and uv or python3 with venv; without venv, sudo that asks for no password. uv also brings the head's Python.
set -eu
cd "$(dirname "$0")/.."
role=${1:-worker}
noted=infra/head-versions.txt
# Where pip was told of a folder with wheels, uv is told, too.
export UV_FIND_LINKS="${UV_FIND_LINKS-${PIP_FIND_LINKS-}}" UV_NO_PROGRESS=1 PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
    # With the address by which the machine was reached: infra/nodes.py looks for it in the head's log.
    set -- "$1" ${SSH_CONNECTION:-}
    echo "error: $(hostname) ${4:-}: $1" >&2
    exit 1
}

uv=$(PATH="$HOME/.local/bin:$PATH" command -v uv || true)
wanted=$(cat pyproject.toml infra/constraints.txt | sha256sum)
if [ "$(cat .venv/.installed-node 2>/dev/null || true)" != "$wanted" ]; then
    rm -rf .venv
    if [ -n "$uv" ]; then
        # Ray takes nodes of one Python alone, to its last number.
        python=$(sed -n 's/^Python \([^,]*\),.*/\1/p' "$noted" 2>/dev/null || true)
        if [ "$role" = head ]; then python=; fi
        "$uv" venv --quiet --python "${python:-python3}" .venv || fail "uv finds no Python ${python:-3}; install it"
    else
        command -v python3 >/dev/null || fail "no python3 and no uv on the PATH; install either"
        if ! python3 -c 'import ensurepip, venv' 2>/dev/null && sudo -n true 2>/dev/null; then
            sudo -n apt-get -qq update && sudo -n env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y python3-venv >/dev/null
        fi
        python3 -c 'import ensurepip, venv' 2>/dev/null ||
            fail "python3 has no venv, and sudo asks for a password; install uv for this user, or python3-venv as root"
        python3 -m venv .venv
        .venv/bin/pip install --quiet -c infra/constraints.txt uv
        uv=.venv/bin/uv
    fi
    .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$(.venv/bin/python --version), expected 3.11 or newer; install uv, which brings one, or a newer system"
    VIRTUAL_ENV=.venv "$uv" pip install --quiet -c infra/constraints.txt -e '.[pipelines]' || fail "packages are missing, see above"
    echo "$wanted" >.venv/.installed-node
fi

# A job's `python` and the `ray` of `ray down` are those of the shell that a login opens.
path="export PATH=$PWD/.venv/bin:\$PATH"
grep -qsxF "$path" ~/.bashrc || echo "$path" >>~/.bashrc
if [ -e ~/.ray/auth_token ]; then chmod 700 ~/.ray && chmod 600 ~/.ray/auth_token; fi

if [ "$role" = head ]; then
    .venv/bin/python infra/nodes.py versions >"$noted.new"
    cmp -s "$noted.new" "$noted" && rm "$noted.new" || mv "$noted.new" "$noted" # the head brings it to the workers with the code
else
    .venv/bin/python infra/nodes.py same "$noted"
fi
