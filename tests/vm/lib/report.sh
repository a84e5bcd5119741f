# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # variables of `run` and for it
# From serial logs to verdicts. Sourced by `run`.

list_scenarios() { sed -n 's/^\([a-z][^ ]*\) .*/\1/p' "${VM_LISTS[@]}"; }
chain_of() { awk -v name="$1" '$1 == name { print $2 }' "${VM_LISTS[@]}"; }

# seconds_between LOG FROM TO: host time between the first line with FROM and the last with TO.
seconds_between() {
  awk -v from="$2" -v to="$3" '
    function seconds(text, part) { split(text, part, ":"); return part[1] * 3600 + part[2] * 60 + part[3] }
    index($0, from) && !begun { start = seconds($1); begun = 1 }
    index($0, to) && begun { end = seconds($1) }
    END { d = end - start; if (d < 0) d += 86400; printf "%.1f", begun && end ? d : 0 }' "$1"
}

# splat_in LOG: the first line of a kernel's that no kernel may print, in any of the chain's kernels.
splat_in() { cut -d' ' -f2- "$1" | grep -m 1 -E -f "$here/guest/splats" | sed 's/^ *//'; }

# report SCENARIO...: the verdict lines; fails unless all passed. A scenario passes on the line that
# the guest printed, in a machine that ended as it should.
report() {
  local name chain log seconds verdict reason splat bad=0
  for name in "$@"; do
    chain=$(chain_of "$name")
    log=$VM_DIR/$chain.log
    [ "$name" = "$chain" ] || ln -sf "$chain.log" "$VM_DIR/$name.log"
    seconds=$(seconds_between "$log" "HOLDFAST-VM: BEGIN $name" "HOLDFAST-VM: PASS $name")
    verdict=FAIL
    if reason=$(grep -m 1 -o "HOLDFAST-VM: FAIL $name: .*" "$log"); then
      reason=${reason#HOLDFAST-VM: FAIL "$name": }
    elif ! grep -q "HOLDFAST-VM: PASS $name\$" "$log"; then
      reason="no verdict from the guest; $(grep -m 1 -o -e 'Kernel panic.*' -e 'vm: time limit.*' "$log" ||
        tail -n 1 "$log" | cut -d' ' -f2-); see $log"
    elif [ ! -e "$VM_DIR/$chain.ok" ]; then
      reason="the machine ended badly: $(tail -n 1 "$log" | cut -d' ' -f2-); see $log"
    elif splat=$(splat_in "$log") && [ -n "$splat" ]; then
      reason="a kernel's log is not calm: $splat; see $log"
    else
      verdict=PASS
      reason=$(awk -v name="$name" '$1 == name' "${VM_LISTS[@]}" | tr -s ' ' | cut -d' ' -f3-)
    fi
    [ $verdict = PASS ] || bad=1
    echo "$verdict $name $seconds $reason"
  done
  return $bad
}
