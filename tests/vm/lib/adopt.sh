# shellcheck shell=bash
# The machines of the chains on the patched kernel (adopt.list): their RAM is a shared file, frames
# come in through a UDP socket, and an oracle on the host counts what arrives where. Sourced by `run`.
# shellcheck disable=SC2154,SC2034 # variables of `run` and for it

POOL=iommu_preserve=16M@1344M # 0x54000000
SECOND_MEMMAP=memmap=64M!1152M
# On the root bus; a hotplug port above a device makes it one that cannot be preserved.
NIC_DEVICE=(-device "e1000e,netdev=net0,addr=10.0")
NIC_BEHIND_PORT=(-device "pcie-root-port,id=slot1,chassis=1,addr=11.0,hotplug=off"
  -device "e1000e,bus=slot1,netdev=net0")
ROOT_BUS="vm.nic=0000:00:10.0"

# What QEMU itself says about translation faults and invalidations.
VTD_TRACES=(-trace vtd_dmar_fault -trace vtd_inv_desc_cc_device -trace vtd_inv_desc_iotlb_domain
  -trace vtd_inv_desc_iotlb_pages)

# free_ports N: so many UDP ports that nobody uses.
free_ports() {
  python3 -c 'import socket, sys
held = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(int(sys.argv[1]))]
for one in held: one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in held))' "$1"
}

# A slower kernel gets its frames more slowly, so that the ring lasts.
rate() { echo $((${RATE:-1200} / ${HOLDFAST_VM_SLOW:-1})); }

# adopt_machine LIMIT CMDLINE [QEMU ARGUMENT...]: one machine under the eyes of an oracle for each NIC
# (ORACLES, default 1), sending RATE frames a second, one (DAMAGED, default 0) flipping a bit of DAMAGE. UNPLUG: a
# root port whose slot loses power between the kernels. BELL: where the host rings a device of its own. UNIT: where a second IOMMU has its registers. What oracle N saw is in $VM_DIR/$CHAIN.oracle.N
# afterwards, and in the log.
adopt_machine() {
  local ram=$VM_DIR/$CHAIN.ram ports status=0 oracles=() nets=() n=0 damage
  [ -w /dev/shm ] && ram=$(mktemp /dev/shm/holdfast-vm.XXXXXX)
  # shellcheck disable=SC2064 # the name as it is now
  trap "rm -f '$ram' '$ram.qmp'" EXIT
  truncate -s "$MACHINE_RAM" "$ram"
  read -r -a ports < <(free_ports $((2 * ${ORACLES:-1})))
  while [ $n -lt "${ORACLES:-1}" ]; do
    damage=none
    if [ $n = "${DAMAGED:-0}" ]; then damage=${DAMAGE:-none}; fi
    "$here/lib/adopt_oracle" --ram "$ram" --to "${ports[2 * n]}" --from "${ports[2 * n + 1]}" \
      --out "$VM_DIR/$CHAIN.oracle.$n" --rate "$(rate)" --id $n \
      --pool 0x54000000 --damage "$damage" 2>"$VM_DIR/$CHAIN.oracle.err" &
    oracles+=($!)
    nets+=(-netdev "socket,id=net$n,udp=127.0.0.1:${ports[2 * n + 1]},localaddr=127.0.0.1:${ports[2 * n]}")
    n=$((n + 1))
  done
  if [ -n "${UNPLUG:-}" ]; then
    "$here/lib/adopt_unplug" --ram "$ram" --pool 0x54000000 --qmp "$ram.qmp" --port "$UNPLUG" \
      --out "$VM_DIR/$CHAIN.unplug" 2>>"$VM_DIR/$CHAIN.oracle.err" &
    oracles+=($!)
    nets+=(-qmp "unix:$ram.qmp,server=on,wait=off")
  fi
  if [ -n "${BELL:-}" ]; then
    "$here/lib/adopt_bell" --socket "$ram.bell" --rate 500 --out "$VM_DIR/$CHAIN.bell" \
      2>>"$VM_DIR/$CHAIN.oracle.err" &
    oracles+=($!)
    until [ -S "$ram.bell" ]; do sleep 0.05; done
    nets+=(-chardev "socket,id=bell,path=$ram.bell"
      -device "ivshmem-doorbell,vectors=1,chardev=bell,addr=$BELL")
  fi
  if [ -n "${UNIT:-}" ]; then
    "$VM_DIR/dmar_unit" "$ram" "$UNIT" 0x54000000 "$VM_DIR/$CHAIN.unit" 2>>"$VM_DIR/$CHAIN.oracle.err" &
    oracles+=($!)
  fi
  machine "$1" "$2 $POOL vm.scenario=$CHAIN" -no-reboot -machine memory-backend=ram \
    -object "memory-backend-file,id=ram,size=$MACHINE_RAM,mem-path=$ram,share=on" \
    "${nets[@]}" "${VTD_TRACES[@]}" "${@:3}" || status=1
  kill "${oracles[@]}" 2>/dev/null
  wait "${oracles[@]}" || status=1
  rm -f "$ram" "$ram.qmp"
  for ((n = 0; n < ${ORACLES:-1}; n++)); do
    sed "s/^/oracle $n: /" "$VM_DIR/$CHAIN.oracle.$n" | stamp >>"$CHAIN_LOG"
  done
  cat "$VM_DIR/$CHAIN.oracle.err" >>"$CHAIN_LOG"
  return $status
}

# aimed_invalidations: how often QEMU was told to forget what it had cached of the held device or its
# domain, from the old kernel's last words until the new owner begins: without Holdfast when it tries what
# is refused, with it when all is registered. "unknown" if it never began, or no kernel said which domain that is.
aimed_invalidations() {
  local until='HOLDFAST-VM: ok .*: what must be refused'
  grep -q 'holdfast.arena=\|: restored (exit 0)' "$CHAIN_LOG" && until='^[^ ]* phase 4$'
  awk -v until="$until" '
    function forget() { counting = 0; split("", device); split("", domain) }
    /HOLDFAST-VM: boot chain=.* step=1 / { forget() }
    /leaving for step/ { counting = 1 }
    /device 0000:.* root=0x.* did=/ {
      split($3, part, ":"); name = part[2] ":" part[3]; sub(/\./, ".0", name)
      for (i = 4; i <= NF; i++) if ($i ~ /^did=/) did = sprintf("0x%x", substr($i, 5))
    }
    counting && $0 ~ until { sum += device[name] + domain[did]; windows++; forget() }
    counting && /vtd_inv_desc_cc_device/ { device[$NF]++ }
    counting && /vtd_inv_desc_iotlb_pages/ { domain[$6]++ }
    counting && /vtd_inv_desc_iotlb_domain/ { domain[$NF]++ }
    END { print did == "" || !windows ? "unknown" : sum + 0 }' "$CHAIN_LOG"
}

# listed_ranges: what the kernels say of where tables are, in the oracle's words.
listed_ranges() {
  sed -n 's/.*range root=[^ ]* start=\(0x[0-9a-f]*\) bytes=\([0-9]*\).*/\1+\2/p' "$CHAIN_LOG" | sort -u | paste -sd,
}

# saw KEY OPERATOR VALUE [ORACLE]: what the oracle counted; a chain fails on it. Faults are those of the
# held device, HELD_SID (0x80: 00:10.0).
saw() {
  local value
  case $1 in
    faults) value=$(grep -c "vtd_dmar_fault sid ${HELD_SID:-0x80} " "$CHAIN_LOG" || true) ;;
    unit-*) value=$(sed -n "s/^${1#unit-} //p" "$VM_DIR/$CHAIN.unit") ;;
    rings) value=$(sed -n "s/^$1 //p" "$VM_DIR/$CHAIN.bell") ;;
    unplugged) value=$(sed -n "s/^$1 //p" "$VM_DIR/$CHAIN.unplug") ;;
    invalidations) value=$(aimed_invalidations) ;;
    moved) value=$(sed -n 's/^.*HOLDFAST-VM: text //p' "$CHAIN_LOG" | grep -cE '^ffffffff[89a-f][0-9a-f]{7}$' || true) ;;
    linked) value=$(sed -n 's/^.*HOLDFAST-VM: text //p' "$CHAIN_LOG" | grep -c '^ffffffff81000000' || true) ;;
    levels) value=$(sed -n 's/^.* domain root=.* levels=\([0-9]\).*/\1/p' "$CHAIN_LOG" | sort -u | xargs) ;;
    *) value=$(sed -n "s/^$1 //p" "$VM_DIR/$CHAIN.oracle.${4:-0}") ;;
  esac
  case $2 in
    =) [ "$value" = "$3" ] && return ;;
    !=) [ "$value" != "$3" ] && return ;;
    -eq) [ "$value" -eq "$3" ] && return ;;
    -ge) [ "$value" -ge "$3" ] && return ;;
    -le) [ "$value" -le "$3" ] && return ;;
  esac
  echo "HOLDFAST-VM: FAIL $CHAIN: the host saw $1 $value, not $2 $3" | stamp >>"$CHAIN_LOG"
  return 1
}

# went_on: the bar for a device that was adopted: no frame lost, misplaced or anywhere else, no fault,
# nothing that the device or QEMU could have noticed.
went_on() {
  saw wrong -eq 0 && saw spoilt -eq 0 && saw strays -eq 0 && saw faults -eq 0 && saw during -ge 2000 &&
    saw registered -eq 1 && saw finished -eq 1 && saw table-change = - && saw table-samples -ge 100 && saw entries -eq 2 &&
    saw invalidations -eq 0 && saw moved -ge 2 && saw linked -le 1
}

# The proof itself, at the rate it is to be made at; a kernel with checks in it is slower.
at_full_rate() { [ "${HOLDFAST_VM_SLOW:-1}" != 1 ] || saw rate -ge 1000; }

# lists_ranges: the kernel lists exactly the pages that the host reached from the device's context entry.
lists_ranges() { saw table-ranges = "$(listed_ranges)"; }

# stopped: nothing arrived once the old kernel had left, and nothing went anywhere else.
stopped() { saw wrong -eq 0 && saw strays -eq 0 && saw during -le 1200 && saw registered -eq 0; }

# -- the chains: one scenario each, of the same name -----------------------------------------------------


raw_chain() { SCRIPT=raw adopt_machine "$@"; }

chain_adopt_live() {
  raw_chain 150 "$REGION_MEMMAP $ROOT_BUS" "${NIC_DEVICE[@]}" && went_on && at_full_rate && lists_ranges
}

chain_adopt_root_port() {
  HELD_SID=0x100
  raw_chain 150 "$REGION_MEMMAP vm.nic=0000:01:00.0 vm.resets=yes" "${NIC_BEHIND_PORT[@]}" && went_on
}

chain_adopt_48_bits() {
  VM_IOMMU=intel-iommu,intremap=on,caching-mode=on,aw-bits=48
  raw_chain 150 "$REGION_MEMMAP $ROOT_BUS" "${NIC_DEVICE[@]}" && went_on && saw levels = 4 && lists_ranges
}

chain_adopt_no_caching_mode() {
  VM_IOMMU=intel-iommu,intremap=on
  raw_chain 150 "$REGION_MEMMAP $ROOT_BUS" "${NIC_DEVICE[@]}" && went_on
}

chain_adopt_no_intremap() {
  VM_IOMMU=intel-iommu,intremap=off,caching-mode=on
  raw_chain 150 "$REGION_MEMMAP $ROOT_BUS vfio_iommu_type1.allow_unsafe_interrupts=1" \
    "${NIC_DEVICE[@]}" && went_on
}

# Its process tries to end the hold, and to have interrupts in three ways, after devices have been shut
# down. Eight more give it time for that: four are shut down between the disk that it watches and its own,
# four after its own has been silenced. It goes on while another CPU takes the kernel down.
chain_adopt_hammered() {
  VM_THREADS=multi
  local more=() at
  for at in 4 5 6 7 13 14 15 16; do more+=(-device "e1000e,addr=$at.0"); done
  raw_chain 150 "$REGION_MEMMAP $ROOT_BUS vm.how=hammer" "${NIC_DEVICE[@]}" "${more[@]}" && went_on
}

# A second device raises its interrupt hundreds of times a second, whatever kernel there is. Shutting down
# the NICs that come after it takes a while. A host so busy that nobody ran between the silence and the end
# has shown nothing of it: once more, whatever else was seen.
interrupts_chain() {
  VM_THREADS=multi
  local more=() at try status
  BELL=12.0
  for at in 4 5 6 7; do more+=(-device "e1000e,addr=$at.0"); done
  for try in 1 2 3; do
    status=0
    raw_chain 150 "$REGION_MEMMAP $ROOT_BUS vm.how=interrupts vm.bell=0000:00:12.0 $*" "${NIC_DEVICE[@]}" \
      -device edu,addr=13.0 "${more[@]}" && went_on && saw rings -ge 2000 || status=1
    [ "$try" != 3 ] && grep -q 'raw_bell: nobody saw it silenced' "$CHAIN_LOG" || break
    mv "$CHAIN_LOG" "$CHAIN_LOG.$try"
    rm -f "$VM_DIR/$CHAIN.state"
    disks "$CHAIN"
  done
  return $status
}
chain_adopt_interrupts() { interrupts_chain; }
# Nothing between a stray message and a CPU.
chain_adopt_interrupts_no_intremap() {
  VM_IOMMU=intel-iommu,intremap=off,caching-mode=on
  interrupts_chain vfio_iommu_type1.allow_unsafe_interrupts=1
}

# Writing all of memory takes a while under emulation; the ring must last for it.
chain_adopt_full_memory() {
  RATE=400
  raw_chain 200 "$REGION_MEMMAP $ROOT_BUS vm.fill=yes" "${NIC_DEVICE[@]}" && went_on
}

chain_adopt_killed() {
  raw_chain 200 "$REGION_MEMMAP $ROOT_BUS vm.killed=yes" "${NIC_DEVICE[@]}" && went_on
}

chain_adopt_scale() {
  raw_chain 300 "$REGION_MEMMAP $ROOT_BUS vm.scale=yes" "${NIC_DEVICE[@]}" && went_on
}

chain_adopt_scale_no_caching_mode() {
  VM_IOMMU=intel-iommu,intremap=on
  raw_chain 300 "$REGION_MEMMAP $ROOT_BUS vm.scale=yes" "${NIC_DEVICE[@]}" && went_on
}

# What the kernel's own tests, run at boot, have to say.
chain_adopt_accounting() {
  SCRIPT=accounting machine 60 "$POOL kunit.enable=1" -no-reboot
}

# One that adopts nothing in between; five in a row at a rate that the ring lasts for.
chain_adopt_five_kernels() {
  RATE=300
  raw_chain 300 "$REGION_MEMMAP $ROOT_BUS vm.rounds=5" "${NIC_DEVICE[@]}" && went_on
}

chain_adopt_next_to_another() {
  ORACLES=2
  raw_chain 200 "$REGION_MEMMAP $SECOND_MEMMAP $ROOT_BUS vm.second=0000:00:12.0" "${NIC_DEVICE[@]}" \
    -device "e1000e,netdev=net1,addr=12.0" && went_on &&
    saw wrong -eq 0 1 && saw strays -eq 0 1 && saw during -le 1200 1
}

# Through Holdfast: record, freeze, kexec, restore, take.
chain_live_adopt() {
  RATE=1050 SCRIPT=live adopt_machine 260 "$REGION_MEMMAP $SECOND_MEMMAP $ROOT_BUS" \
    "${NIC_DEVICE[@]}" && went_on && at_full_rate
}

# The same, and who took it is frozen, killed and adopted in its turn; the ring must last for it.
chain_live_again() {
  RATE=500 SCRIPT=live adopt_machine 400 "$REGION_MEMMAP $SECOND_MEMMAP $ROOT_BUS vm.again=yes" \
    "${NIC_DEVICE[@]}" && went_on
}

# The same, and the agent is killed again and again; the ring must last for it.
chain_live_killed() {
  SCRIPT=live_killed RATE=300 adopt_machine 330 \
    "$REGION_MEMMAP $SECOND_MEMMAP $ROOT_BUS vm.scenario=live-killed" "${NIC_DEVICE[@]}" && went_on
}

# As many mappings as a container may have. The ring must last for all of it.
chain_live_scale() {
  RATE=400 SCRIPT=scale adopt_machine 500 "$REGION_MEMMAP $SECOND_MEMMAP $ROOT_BUS" "${NIC_DEVICE[@]}" &&
    saw wrong -eq 0 && saw strays -eq 0 && saw faults -eq 0 && saw registered -eq 1 && saw finished -eq 1 &&
    saw table-change = - && saw invalidations -eq 0
}

chain_live_scale_no_caching_mode() {
  VM_IOMMU=intel-iommu,intremap=on
  chain_live_scale
}

# Two containers through Holdfast; the host flips something of the first one's between the kernels, or
# takes the second out.
live_pair_chain() { # SCENARIO EXPECT [SECOND QEMU ARGUMENT...]: by default the second NIC is 00:12.0
  ORACLES=2
  local second=("${@:4}")
  [ $# -gt 2 ] || second=(-device "e1000e,netdev=net1,addr=12.0")
  SCRIPT=${PAIR:-live_pair} RATE=600 adopt_machine 330 "$REGION_MEMMAP $SECOND_MEMMAP memmap=32M!1248M $ROOT_BUS \
    vm.scenario=$1 vm.expect=$2 vm.second=${3:-0000:00:12.0}" "${NIC_DEVICE[@]}" "${second[@]}"
}
# The first one goes on undisturbed, whatever was found about it.
live_bad() { # SCENARIO DAMAGE CODE
  DAMAGE=$2
  live_pair_chain "$1" "$3" && saw damaged -eq 1 && saw wrong -eq 0 && saw strays -eq 0 &&
    saw faults -eq 0 && saw registered -eq 0 && second_went_on
}
chain_live_bad_leaf() { live_bad live-bad-leaf leaf HF-TABLE-DIFFERS; }
chain_live_bad_permission() { live_bad live-bad-permission permission HF-TABLE-DIFFERS; }
chain_live_bad_context() { live_bad live-bad-context domain-id HF-CONTEXT-CHANGED; }
chain_live_bad_pointer() { live_bad live-bad-pointer pointer HF-CONTEXT-CHANGED; }
# What the kernel finds by itself: nothing of the first arrives under it.
chain_live_cut() {
  DAMAGE=table PAIR=live_cut
  live_pair_chain live-cut table && saw damaged -eq 1 && saw strays -eq 0 && saw late -eq 0 &&
    saw registered -eq 0 && second_went_on
}
# The second one, behind a port, is taken out between the kernels.
chain_live_removed() {
  UNPLUG=11.0
  live_pair_chain live-removed removed 0000:01:00.0 \
    -device "pcie-root-port,id=slot1,chassis=1,addr=11.0,hotplug=off" \
    -device "e1000e,bus=slot1,netdev=net1" && first_went_on && saw wrong -eq 0 1 &&
    saw strays -eq 0 1 && saw registered -eq 0 1 && saw unplugged -eq 1
}
# Buses are probed in their order: what stays had an IOMMU group of a higher number before.
chain_live_removed_first() {
  UNPLUG=11.0
  HELD_SID=0x200
  NIC_DEVICE=(-device "pcie-root-port,id=slot2,chassis=2,addr=12.0,hotplug=off"
    -device "e1000e,bus=slot2,netdev=net0")
  ROOT_BUS="vm.nic=0000:02:00.0"
  live_pair_chain live-removed-first removed 0000:01:00.0 \
    -device "pcie-root-port,id=slot1,chassis=1,addr=11.0,hotplug=off" \
    -device "e1000e,bus=slot1,netdev=net1" && first_went_on && saw wrong -eq 0 1 &&
    saw strays -eq 0 1 && saw registered -eq 0 1 && saw unplugged -eq 1
}
chain_live_neighbour_changes() {
  DAMAGE=neighbour
  live_pair_chain live-neighbour-changes both && saw damaged -eq 1 && saw neighbours -ge 1 &&
    first_went_on && second_went_on
}
chain_live_release() {
  # What was left behind is taken out of the first one's tables on the way down, and nothing else.
  live_pair_chain live-release release && saw wrong -eq 0 && saw strays -eq 0 && saw faults -eq 0 &&
    saw during -ge 2000 && saw registered -eq 1 && saw finished -eq 1 && saw table-change != - &&
    HELD_SID=0x90 && saw wrong -eq 0 1 && saw strays -eq 0 1 && saw faults -eq 0 &&
    saw registered -eq 0 1
}

pair_chain() { # PARAMETERS [QEMU ARGUMENT...]: by default the second NIC is 00:12.0
  ORACLES=2
  local second=("${@:2}")
  [ $# -gt 1 ] || second=(-device "e1000e,netdev=net1,addr=12.0")
  SCRIPT=pair adopt_machine 240 "$REGION_MEMMAP $SECOND_MEMMAP $ROOT_BUS $1" "${NIC_DEVICE[@]}" \
    "${second[@]}"
}
second_went_on() {
  HELD_SID=0x90
  saw wrong -eq 0 1 && saw strays -eq 0 1 && saw during -ge 2000 1 && saw registered -eq 1 1 &&
    saw finished -eq 1 1 && saw table-change = - 1 && saw faults -eq 0
}
first_went_on() {
  saw wrong -eq 0 && saw strays -eq 0 && saw faults -eq 0 && saw during -ge 2000 &&
    saw registered -eq 1 && saw finished -eq 1 && saw table-change = -
}
chain_adopt_two_groups() { pair_chain vm.together=yes && first_went_on && second_went_on; }
chain_adopt_two_containers() { pair_chain "" && first_went_on && second_went_on; }
chain_adopt_the_undamaged() {
  DAMAGE=table
  pair_chain vm.reason=table && saw damaged -eq 1 && saw strays -eq 0 && second_went_on
}

# Two functions that a port without ACS puts into one group, and the domain id in the entry of one is flipped:
# the group has no domain in common any more, so neither goes on.
chain_control_split_group() {
  NIC_DEVICE=(-device "pcie-root-port,id=slot1,chassis=1,addr=11.0,hotplug=off,disable-acs=on"
    -device "e1000e,bus=slot1,addr=0.0,multifunction=on,netdev=net0")
  ROOT_BUS="vm.nic=0000:01:00.0"
  DAMAGE=domain-id
  pair_chain "vm.second=0000:01:00.1 vm.together=yes vm.split=yes" \
    -device "e1000e,bus=slot1,addr=0.1,netdev=net1" && saw damaged -eq 1 && saw strays -eq 0 &&
    saw wrong -eq 0 && saw strays -eq 0 1 && saw wrong -eq 0 1 && saw registered -eq 0 &&
    saw registered -eq 0 1
}

# Two containers, and the entry of one gets the domain id of the other: they would share what the hardware
# has cached, so neither goes on.
chain_control_same_id() {
  DAMAGE=same-id
  pair_chain vm.split=yes && saw damaged -eq 1 && saw strays -eq 0 && saw wrong -eq 0 &&
    saw strays -eq 0 1 && saw wrong -eq 0 1 && saw registered -eq 0 && saw registered -eq 0 1
}

# The second one, behind a port, is taken out between the kernels.
removed_chain() { # PARAMETERS
  UNPLUG=11.0
  pair_chain "vm.second=0000:01:00.0 vm.removed=yes $1" \
    -device "pcie-root-port,id=slot1,chassis=1,addr=11.0,hotplug=off" \
    -device "e1000e,bus=slot1,netdev=net1" && first_went_on && saw wrong -eq 0 1 &&
    saw strays -eq 0 1 && saw registered -eq 0 1 && saw unplugged -eq 1
}
chain_control_removed() { removed_chain ""; }
chain_control_removed_thawed() { removed_chain vm.together=yes; } # both in one container

# What must not go on, each in its own way.

chain_control_stock() {
  local VM_KERNEL=$BASE_DIR/vmlinuz
  raw_chain 150 "$REGION_MEMMAP $ROOT_BUS vm.how=plain vm.image=stock vm.last=quiet" \
    "${NIC_DEVICE[@]}" && stopped
}

chain_control_no_opt_in() {
  raw_chain 150 "$REGION_MEMMAP $ROOT_BUS vm.how=plain vm.last=quiet" "${NIC_DEVICE[@]}" && stopped
}

chain_control_left_behind() {
  # The memory in question comes after ADOPT_BEHIND buffers; they must be full before the end.
  RATE=$((1200 * ${HOLDFAST_VM_SLOW:-1}))
  raw_chain 150 "$REGION_MEMMAP $ROOT_BUS vm.how=behind vm.last=found" "${NIC_DEVICE[@]}" &&
    saw first-wrong -ge 8192 && saw strays -eq 0 && saw faults -ge 1
}

# Its hold ends while nobody has the device open: it stops with its container, before it could reach
# anything that its group gets next. The port is in its group, for want of ACS, and goes on.
chain_control_thawed_unopened() {
  HELD_SID=0x100
  raw_chain 150 "$REGION_MEMMAP vm.nic=0000:01:00.0 vm.last=thawed" \
    -device "pcie-root-port,id=slot1,chassis=1,addr=11.0,hotplug=off,disable-acs=on" \
    -device "e1000e,bus=slot1,netdev=net0" &&
    saw wrong -eq 0 && saw strays -eq 0 && saw faults -eq 0 && saw during -ge 2000
}

chain_control_no_reservation() {
  raw_chain 150 "$REGION_MEMMAP $ROOT_BUS vm.image=no-memory vm.reason=memory vm.last=blocked" "${NIC_DEVICE[@]}" &&
    saw wrong -eq 0 && saw strays -eq 0 && saw registered -eq 0
}

chain_control_crash() {
  raw_chain 200 "$REGION_MEMMAP $ROOT_BUS crashkernel=256M vm.last=dumped" "${NIC_DEVICE[@]}" &&
    saw wrong -eq 0 && saw registered -eq 0
}

# One bit of the pool flips between the kernels: refused, blocked, and usable again from scratch.
damaged() { # WHAT REASON
  DAMAGE=$1
  raw_chain 150 "$REGION_MEMMAP $ROOT_BUS vm.reason=$2 vm.last=blocked" \
    "${NIC_DEVICE[@]}" && saw damaged -eq 1 && saw strays -eq 0 && saw registered -eq 0 && saw late -eq 0
}
chain_control_bad_table() { damaged table table; }
chain_control_bad_bit() { damaged reserved-bit table; }
chain_control_bad_width() { damaged width context; }
chain_control_bad_context() { damaged context context; }

# The pool's header is that of another pool, as where the next kernel has its own elsewhere: nothing is taken
# over, and everything is blocked. The frame under way at that moment may be cut off: written down as
# received by a device that could not write it.
chain_control_other_header() {
  DAMAGE=header
  raw_chain 150 "$REGION_MEMMAP $ROOT_BUS vm.last=lost" "${NIC_DEVICE[@]}" && saw damaged -eq 1 &&
    saw wrong -le 1 && saw strays -eq 0 && saw registered -eq 0 && saw late -eq 0 &&
    saw faults -ge 1
}
chain_live_other_header() {
  DAMAGE=header
  RATE=600 SCRIPT=live adopt_machine 260 "$REGION_MEMMAP $SECOND_MEMMAP $ROOT_BUS vm.expect=lost" \
    "${NIC_DEVICE[@]}" && saw damaged -eq 1 && saw wrong -le 1 && saw strays -eq 0 && saw registered -eq 0 &&
    saw late -eq 0
}

# Forced past Holdfast into a kernel without the pool, or with a smaller one: it goes down as if there were no hold.
live_forced() { # LINE
  RATE=600 SCRIPT=live adopt_machine 260 "$REGION_MEMMAP $SECOND_MEMMAP $ROOT_BUS vm.expect=lost vm.forced=$1" \
    "${NIC_DEVICE[@]}" && stopped && saw late -eq 0
}
chain_live_no_pool() { live_forced no-pool; }
chain_live_small_pool() { live_forced small-pool; }

# A hold that is armed for no image, or for another one than is started, goes down as if there were none.
unarmed() { # WHAT IS LOADED
  raw_chain 150 "$REGION_MEMMAP $ROOT_BUS vm.how=unarmed vm.image=$1 vm.last=quiet" \
    "${NIC_DEVICE[@]}" && stopped
}
chain_control_no_pool() { unarmed no-pool; }
chain_control_moved_pool() { unarmed moved-pool; }
chain_control_small_pool() { unarmed small-pool; }
chain_control_old_call() { unarmed old-call; }
chain_control_stock_image() { unarmed stock; }
chain_control_command_lines() {
  raw_chain 200 "$REGION_MEMMAP $ROOT_BUS vm.image=lines vm.last=quiet" "${NIC_DEVICE[@]}" && stopped
}
chain_control_loaded_again() {
  raw_chain 150 "$REGION_MEMMAP $ROOT_BUS vm.image=again vm.last=quiet" "${NIC_DEVICE[@]}" && stopped
}

# Devices that cannot be preserved, next to one that can.
chain_refused() {
  VM_IOMMU=intel-iommu,intremap=on,caching-mode=on,device-iotlb=on
  adopt_machine 150 "$REGION_MEMMAP $ROOT_BUS" "${NIC_DEVICE[@]}" \
    -device "pcie-root-port,id=slot1,chassis=1,addr=11.0" -device "e1000e,bus=slot1" \
    -device "pcie-root-port,id=slot2,chassis=2,addr=13.0,hotplug=off" \
    -device "virtio-net-pci,bus=slot2,disable-legacy=on,iommu_platform=on,ats=on" \
    -device "edu,addr=12.0,multifunction=on" -device "virtio-net-pci,addr=12.1" &&
    first_went_on
}

chain_refused_vf() {
  SCRIPT=refused adopt_machine 100 "$REGION_MEMMAP $ROOT_BUS vm.only=virtual_function" "${NIC_DEVICE[@]}" \
    -device "nvme-subsys,id=controllers" \
    -device "nvme,addr=14.0,serial=1,subsys=controllers,sriov_max_vfs=1,sriov_vq_flexible=2,sriov_vi_flexible=1"
}

chain_refused_scalable() {
  VM_IOMMU=intel-iommu,intremap=on,caching-mode=on,x-scalable-mode=on
  SCRIPT=refused adopt_machine 100 "$REGION_MEMMAP $ROOT_BUS intel_iommu=sm_on vm.only=scalable" \
    "${NIC_DEVICE[@]}" && saw arrived -eq 0
}

# A pool that is used up. The region is this side of it.
exhausted() {
  POOL=iommu_preserve=2M@1344M
  SCRIPT=exhausted adopt_machine 100 "$REGION_MEMMAP $ROOT_BUS $*" "${NIC_DEVICE[@]}" \
    -device "e1000e,addr=12.0" && first_went_on
}
chain_control_exhausted() { exhausted; }
chain_control_exhausted_sparse() { exhausted vm.sparse=sparse; }

# A second unit, next to QEMU's own; its device has a container of its own, and does no DMA.
units_chain() { # PARAMETER...
  ORACLES=2
  UNIT=0x58000000
  VM_IOMMU=intel-iommu,intremap=off,caching-mode=on
  cc -std=gnu11 -O2 -Wall -Wextra -Werror -D_GNU_SOURCE -o "$VM_DIR/dmar_unit" "$here/lib/dmar_unit.c" || return 1
  cat "$VM_DIR/root/vm/dmar.cpio" "$VM_INITRD" >"$VM_DIR/$CHAIN.initrd"
  VM_INITRD=$VM_DIR/$CHAIN.initrd SCRIPT=units adopt_machine 240 "$REGION_MEMMAP $SECOND_MEMMAP $ROOT_BUS \
    memmap=1M\$1408M vfio_iommu_type1.allow_unsafe_interrupts=1 $*" "${NIC_DEVICE[@]}" -device "edu,addr=15.0"
}
# Neither was switched off, or given another root table, and what the other unit's device has stays.
units_went_on() {
  first_went_on && saw unit-enabled -eq 1 && saw unit-times-off -eq 0 && saw unit-roots-set -eq 0 &&
    saw unit-flushes -ge 1
}
chain_adopt_two_units() {
  units_chain && units_went_on && saw table-samples -ge 100 1 && saw table-change = - 1 &&
    saw finished -eq 1 1
}
chain_adopt_two_units_damaged() {
  DAMAGE=table DAMAGED=1
  units_chain vm.reason=table && units_went_on && saw damaged -eq 1 1 && saw registered -eq 0 1
}
