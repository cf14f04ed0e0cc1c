#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Does what packaging/Containerfile says where no container engine runs: a base system by debootstrap for FROM, chroot
# for RUN, the committed files for COPY. Then starts the image as its user, with a key, and asks it. Needs root.
# usage: make container, or tests/container.sh FOLDER (keeps FOLDER/base for the next time)
set -eu
work=$(realpath -m "$1") root='' user=root n_stages=0
cd "$(dirname "$0")/.."
declare -A stages
settings=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive)
for v in http_proxy https_proxy; do [ -z "${!v:-}" ] || settings+=("$v=${!v}"); done
inside() { env -i "${settings[@]}" chroot "$@"; }
mkdir -p "$work"
trap 'umount "$work"/stage-*/proc 2> /dev/null || true' EXIT

while read -r verb rest; do
    case $verb in
    FROM)
        [ -d "$work/base/usr" ] || debootstrap --variant=minbase bookworm "$work/base" > "$work/base.log"
        n_stages=$((n_stages + 1))
        root=$work/stage-$n_stages
        umount "$root/proc" 2> /dev/null || true
        rm -rf "$root"
        cp -a "$work/base" "$root"
        cp /etc/resolv.conf "$root/etc/"
        mount -t proc proc "$root/proc"
        case $rest in *" AS "*) name=${rest##* } ;; *) name=last ;; esac
        stages[$name]=$root ;;
    COPY)
        read -r from to <<< "$rest"
        if [ "$from" = . ]; then
            mkdir -p "$root$to"
            git archive HEAD | tar -x -C "$root$to"
        else
            name=${from#--from=} from=${to% *} to=${to##* }
            cp -a "${stages[$name]}$from" "$root$to"
        fi ;;
    RUN) inside "$root" sh -ec "$rest" ;;
    ENV) read -ra more <<< "$rest"; settings+=("${more[@]}") ;;
    USER) user=$rest ;;
    VOLUME | EXPOSE) ;;
    '#'* | '') continue ;;
    HEALTHCHECK | ENTRYPOINT | CMD) declare "$verb=$(sed 's/^CMD //; s/[][",]//g' <<< "$rest")" ;;
    *) echo "container: $verb is not known here"; exit 1 ;;
    esac
    echo "done: $verb ${rest:0:60}"
done < <(sed -e ':a' -e '/\\$/N; s/\\\n *//; ta' packaging/Containerfile)

mkdir -p "$root/run/secrets"
echo SECRET > "$root/run/secrets/key"
chmod 644 "$root/run/secrets/key"
# shellcheck disable=SC2086 # words of the file
home=$(sed -n "s/^$user:.*:\([^:]*\):[^:]*\$/\1/p" "$root/etc/passwd") # an engine sets it for USER
settings+=("HOME=$home")
(exec env -i "${settings[@]}" chroot --userspec="$user" "$root" $ENTRYPOINT $CMD --port 18088) > "$work/out" 2> "$work/err" &
pid=$!
for _ in $(seq 300); do [ -s "$work/out" ] && break; kill -0 $pid || { cat "$work/err"; exit 1; }; sleep 0.1; done
status() { curl -s -o "$work/reply" -w '%{http_code}' http://127.0.0.1:18088"$@"; }
failed=0
expect() { [ "$2" = "$3" ] && echo "ok: $1" || { echo "FAILED: $1: $2, want $3"; failed=1; }; }
expect "not root" "$(ps -o uid= -p $pid | grep -cvx " *0")" 1
expect "health" "$(status /health)" 200
expect "no key" "$(status /v1/models)" 401
expect "answer" "$(status /v1/completions -H 'Authorization: Bearer SECRET' -H 'Content-Type: application/json' \
    -d '{"model":"crayon-15m-q8_0","prompt":"A crayon is","max_tokens":4}')" 200
# shellcheck disable=SC2086
expect "healthcheck" "$(inside --userspec="$user" "$root" $HEALTHCHECK > /dev/null 2>&1; echo $?)" 0
kill $pid
wait $pid && code=0 || code=$?
expect "ends" $code 0
echo "size: $(du -sm --exclude=proc "$root" | cut -f1) MB, of which the base is $(du -sm --exclude=proc "$work/base" | cut -f1) MB"
exit $failed
