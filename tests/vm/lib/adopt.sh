# shellcheck shell=bash
# The machines of the chains on the patched kernel (adopt.list): their RAM is a shared file, frames
# come in through a UDP socket, and an oracle on the host counts what arrives where. Sourced by `run`.
# shellcheck disable=SC2154 # $here, $VM_DIR and the like are set by `run`

POOL=iommu_preserve=16M@1344M
# On the root bus; a hotplug port above a device makes it one that cannot be preserved.
NIC_DEVICE=(-device "e1000e,netdev=net,addr=10.0")
NIC_BEHIND_PORT=(-device "pcie-root-port,id=slot1,chassis=1,addr=11.0,hotplug=off"
  -device "e1000e,bus=slot1,netdev=net")

# What QEMU itself says about translation faults and invalidations.
VTD_TRACES=(-trace vtd_dmar_fault -trace vtd_inv_desc_cc_device -trace vtd_inv_desc_iotlb_domain
  -trace vtd_inv_desc_iotlb_pages)

# adopt_machine LIMIT CMDLINE [QEMU ARGUMENT...]: one machine under the oracle's eyes. What the oracle
# saw is in $VM_DIR/$CHAIN.oracle afterwards, and in the log.
adopt_machine() {
  local ram=$VM_DIR/$CHAIN.ram ports status=0 oracle
  [ -w /dev/shm ] && ram=$(mktemp /dev/shm/holdfast-vm.XXXXXX)
  # shellcheck disable=SC2064 # the name as it is now
  trap "rm -f '$ram'" EXIT
  truncate -s "$MACHINE_RAM" "$ram"
  read -r -a ports < <(python3 -c 'import socket
a, b = socket.socket(type=socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)
a.bind(("127.0.0.1", 0)); b.bind(("127.0.0.1", 0))
print(a.getsockname()[1], b.getsockname()[1])')
  "$here/lib/adopt_oracle" --ram "$ram" --to "${ports[0]}" --from "${ports[1]}" \
    --out "$VM_DIR/$CHAIN.oracle" 2>"$VM_DIR/$CHAIN.oracle.err" &
  oracle=$!
  machine "$1" "$2 $POOL" -no-reboot -machine memory-backend=ram \
    -object "memory-backend-file,id=ram,size=$MACHINE_RAM,mem-path=$ram,share=on" \
    -netdev "socket,id=net,udp=127.0.0.1:${ports[1]},localaddr=127.0.0.1:${ports[0]}" \
    "${VTD_TRACES[@]}" "${@:3}" || status=1
  kill "$oracle" 2>/dev/null
  wait "$oracle" || status=1
  rm -f "$ram"
  sed 's/^/oracle: /' "$VM_DIR/$CHAIN.oracle" | stamp >>"$CHAIN_LOG"
  cat "$VM_DIR/$CHAIN.oracle.err" >>"$CHAIN_LOG"
  echo "oracle: faults $(grep -c vtd_dmar_fault "$CHAIN_LOG")" | stamp >>"$CHAIN_LOG"
  # The guest's last line must stay the last.
  echo "vm: qemu exit status $VM_GOOD_EXIT" | stamp >>"$CHAIN_LOG"
  return $status
}

# aimed_invalidations: how often QEMU was told to forget what it had cached of the held device or its
# domain, from the old kernel's last words until the new owner begins.
aimed_invalidations() {
  awk '
    /leaving for step/ { counting = 1 }
    /HOLDFAST-VM: ok .*: what must be refused/ { exit }
    /device 0000:.* root=0x.* did=/ {
      split($3, part, ":"); name = part[2] ":" part[3]; sub(/\./, ".0", name)
      for (i = 4; i <= NF; i++) if ($i ~ /^did=/) did = sprintf("0x%x", substr($i, 5))
    }
    counting && /vtd_inv_desc_cc_device/ { device[$NF]++ }
    counting && /vtd_inv_desc_iotlb_pages/ { domain[$5]++ }
    counting && /vtd_inv_desc_iotlb_domain/ { domain[$NF]++ }
    END { print device[name] + domain[did] + 0 }' "$CHAIN_LOG"
}

# saw KEY OPERATOR NUMBER: what the oracle counted; a chain fails on it.
saw() {
  local value
  if [ "$1" = faults ]; then
    value=$(grep -c vtd_dmar_fault "$CHAIN_LOG" || true)
  elif [ "$1" = invalidations ]; then
    value=$(aimed_invalidations)
  else
    value=$(sed -n "s/^$1 //p" "$VM_DIR/$CHAIN.oracle")
  fi
  [ "$value" "$2" "$3" ] && return
  echo "HOLDFAST-VM: FAIL ${4:-$CHAIN}: the host saw $1 $value, not $2 $3" | stamp >>"$CHAIN_LOG"
  return 1
}

# nothing_amiss: no frame lost, misplaced, or anywhere else.
nothing_amiss() {
  saw wrong -eq 0 && saw strays -eq 0 && saw faults -eq 0
}

# went_on: the bar for a device that was adopted.
went_on() {
  nothing_amiss && saw during -ge 2000 && saw registered -eq 1 && saw table-change = - &&
    saw table-samples -ge 100 && saw invalidations -eq 0
}

chain_raw_live() {
  adopt_machine 150 "$REGION_MEMMAP vm.nic=0000:00:10.0" "${NIC_DEVICE[@]}" && went_on
}
