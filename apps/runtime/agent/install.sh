#!/bin/sh
# Installs the ByteOr agent as a systemd service: a user of its own, a hardened unit, a program whose digest is pinned here.
#
#   sh install.sh ENVIRONMENT_URL TOKEN_FILE [AGENT OPTION...]    first installation
#   sh install.sh --upgrade                                       replace the program, keep everything else
#
# TOKEN_FILE holds a one-time enrollment token. What the agent may do on this host (--allow-post, --allow-exec, ...) is given
# here, or written later into /etc/byteor-agent/options: nothing that the control plane sends can widen it.
#
# BYTEOR_PYTHON names another interpreter than /usr/bin/python3.
set -eu
umask 022

BASE_URL='@BASE_URL@'
SHA256='@SHA256@'
MAX_BYTES=16777216

PYTHON=${BYTEOR_PYTHON:-/usr/bin/python3}
ROOT=${BYTEOR_INSTALL_ROOT:-}
PROGRAM_DIR=/opt/byteor-agent
STATE_DIR=/var/lib/byteor-agent
CONFIG_DIR=/etc/byteor-agent
UNIT=/etc/systemd/system/byteor-agent.service

fail() {
  echo "byteor-agent: $1" >&2
  exit "${2:-1}"
}

usage() {
  fail "usage: sh install.sh ENVIRONMENT_URL TOKEN_FILE [AGENT OPTION...] | sh install.sh --upgrade" 2
}

# Only what can stand in a unit file as it is: no white space, quotes, $, % or backslash.
plain() {
  case $1 in
    '' | *[!A-Za-z0-9._~:/@=,+-]*) fail "'$1' has characters that can't be written into the service's options" 2 ;;
  esac
}

check_host() {
  [ "$(id -u)" -eq 0 ] || fail "run this as root" 2
  command -v systemctl >/dev/null || fail "systemd is needed" 2
  plain "$PYTHON"
  "$PYTHON" -c 'import sys, cryptography; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "$PYTHON must be Python 3.11 or newer with the package cryptography (Debian: apt install python3-cryptography)" 2
}

download() {
  if command -v curl >/dev/null; then
    curl --fail --silent --show-error --max-filesize "$MAX_BYTES" --max-time 120 --output "$1" "$2"
  elif command -v wget >/dev/null; then
    wget --quiet --max-redirect=0 --timeout=60 --output-document="$1" "$2"
  else
    fail "curl or wget is needed" 2
  fi
}

# The program is in place only once its digest is right, and the one before it is kept until then.
install_program() {
  mkdir -p "$ROOT$PROGRAM_DIR"
  draft=$(mktemp "$ROOT$PROGRAM_DIR/.byteor-agent.XXXXXX")
  trap 'rm -f "$draft"' EXIT
  download "$draft" "$BASE_URL/install/byteor-agent.pyz" || fail "the agent can't be fetched from $BASE_URL"
  echo "$SHA256  $draft" | sha256sum --check --status || fail "the digest of what was fetched is wrong; nothing was changed"
  chmod 0755 "$draft"
  mv -f "$draft" "$ROOT$PROGRAM_DIR/byteor-agent.pyz"
  trap - EXIT
}

make_user_and_folders() {
  id byteor-agent >/dev/null 2>&1 ||
    useradd --system --user-group --home-dir "$STATE_DIR" --shell /usr/sbin/nologin byteor-agent
  mkdir -p "$ROOT$CONFIG_DIR" "$ROOT$STATE_DIR/state" "$ROOT$STATE_DIR/data"
  for folder in "$ROOT$STATE_DIR" "$ROOT$STATE_DIR/state" "$ROOT$STATE_DIR/data"; do
    chmod 0700 "$folder"
    chown byteor-agent:byteor-agent "$folder"
  done
}

keep_token() {
  # made empty and unreadable for others first: the token is never in a file that others can read
  (umask 077 && : >"$ROOT$STATE_DIR/enrollment-token" && cat "$1" >"$ROOT$STATE_DIR/enrollment-token")
  chown byteor-agent:byteor-agent "$ROOT$STATE_DIR/enrollment-token"
}

write_options() {
  cat >"$ROOT$CONFIG_DIR/options" <<OPTIONS
# What the ByteOr agent is started with; one line, words separated by spaces. After a change: systemctl restart byteor-agent
BYTEOR_AGENT_OPTIONS=$*
OPTIONS
}

write_unit() {
  mkdir -p "$ROOT$(dirname "$UNIT")"
  cat >"$ROOT$UNIT" <<UNIT
[Unit]
Description=ByteOr agent
Documentation=$BASE_URL/
After=network-online.target
Wants=network-online.target
# it is never given up
StartLimitIntervalSec=0

[Service]
Type=exec
User=byteor-agent
Group=byteor-agent
EnvironmentFile=-$CONFIG_DIR/options
ExecStart=$PYTHON -I $PROGRAM_DIR/byteor-agent.pyz run --environment-url $1 --enrollment-token-file $STATE_DIR/enrollment-token --state-dir $STATE_DIR/state --data-dir $STATE_DIR/data \$BYTEOR_AGENT_OPTIONS
Restart=always
RestartSec=2
# from systemd 254 on: 2 s, then longer, up to a minute
RestartSteps=6
RestartMaxDelaySec=60
KillMode=mixed
TimeoutStopSec=30
TasksMax=256

StateDirectory=byteor-agent
StateDirectoryMode=0700
WorkingDirectory=$STATE_DIR
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
ProtectProc=invisible
ProcSubset=pid
ProtectClock=yes
ProtectHostname=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
PrivateTmp=yes
PrivateDevices=yes
DevicePolicy=closed
RemoveIPC=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
UNIT
  chmod 0644 "$ROOT$UNIT"
}

# Everything is read before anything is done: a script that arrives cut short does nothing.
main() {
  if [ "$#" -eq 1 ] && [ "$1" = --upgrade ]; then
    check_host
    [ -f "$ROOT$UNIT" ] || fail "there is no agent here to upgrade" 2
    install_program
    systemctl restart byteor-agent.service
    echo "byteor-agent was upgraded: systemctl status byteor-agent"
    return
  fi
  [ "$#" -ge 2 ] || usage
  environment_url=$1
  token_file=$2
  shift 2
  case $environment_url in
    http://?* | https://?*) plain "$environment_url" ;;
    *) usage ;;
  esac
  for option in "$@"; do
    plain "$option"
  done
  [ -r "$token_file" ] || fail "$token_file can't be read" 2
  check_host
  install_program
  make_user_and_folders
  keep_token "$token_file"
  write_options "$@"
  write_unit "$environment_url"
  systemctl daemon-reload
  systemctl enable --now byteor-agent.service
  echo "byteor-agent is running: systemctl status byteor-agent"
}

main "$@"
