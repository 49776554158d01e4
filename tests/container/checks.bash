# What tests/container/run checks with; it is sourced there.
# shellcheck shell=bash disable=SC2154 # of "run": work, here, python, cgroup, image

passed=0 failed=0

pass() {
  echo "ok    $1"
  passed=$((passed + 1))
}

fail() { # NAME GOT EXPECTED
  echo "FAIL  $1"
  printf '      got:      %s\n      expected: %s\n' "${2//$'\n'/$'\n'                }" "$3"
  failed=$((failed + 1))
}

is() { # NAME GOT EXPECTED
  if [[ $2 == "$3" ]]; then pass "$1"; else fail "$@"; fi
}

like() { # NAME GOT PATTERN
  # shellcheck disable=SC2053 # a pattern it is
  if [[ $2 == $3 ]]; then pass "$1"; else fail "$@"; fi
}

within() { # NAME MILLISECONDS LEAST MOST
  if (($2 >= $3 && $2 <= $4)); then pass "$1 ($2 ms)"; else fail "$1" "$2 ms" "$3 to $4 ms"; fi
}

status() { # COMMAND...; its output is in $work/out and $work/err
  local result=0
  timeout --kill-after=5 20 "$@" >"$work/out" 2>"$work/err" || result=$?
  echo "$result"
}

client() { "$python" "$here/client.py" "$@" 2>&1; }

client_inside() { # CONTAINER ...
  podman exec --interactive "$1" python - "${@:2}" <"$here/client.py" 2>&1
}

inside() { # CONTAINER SHELL-COMMANDS
  podman exec "$1" sh -c "$2" 2>&1
}

exit_code() { podman inspect --format '{{.State.Status}} {{.State.ExitCode}}' "$1"; }

stop() { # CONTAINER; sets $milliseconds
  local began=${EPOCHREALTIME/[.,]/}
  podman stop --time 10 "$1" >/dev/null || true
  milliseconds=$(((${EPOCHREALTIME/[.,]/} - began) / 1000))
}

start() { # NAME [PODMAN'S OPTIONS...] [-- THE DAEMON'S]
  local name=$1 options=()
  shift
  while (($#)) && [[ $1 != -- ]]; do
    options+=("$1")
    shift
  done
  podman run --detach --pull=never --cgroup-parent="/$cgroup" --name "$name" \
    "${options[@]}" "$image" "${@:2}" >/dev/null
}
