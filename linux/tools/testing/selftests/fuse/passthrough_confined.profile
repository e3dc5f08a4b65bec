# SPDX-License-Identifier: GPL-2.0
# AppArmor, for passthrough_confined_test
profile passthrough_client flags=(attach_disconnected) {
  capability,
  # No m, no x
  /** rwlk,
}

profile passthrough_server flags=(attach_disconnected) {
  capability,
  /** rwlkm,
  deny /tmp/lower/file w,
}
