#!/usr/bin/env bash
# From a bare Ubuntu with an NVIDIA driver to octet on 127.0.0.1:8000. Run by cloud-init, or by hand as root.
# A second run downloads nothing; it looks at the model anew. Settings stand in /etc/octet/install. With DESTDIR
# everything goes below that folder.
set -euo pipefail

destination=${DESTDIR:-}
settings=$destination/etc/octet/install
keys=$destination/etc/octet/api-keys
environment=$destination/etc/octet/environment
stamp=$destination/var/lib/octet-install/archive.sha256
octet=$destination/usr/local/bin/octet

fail() {
  echo "octet: $*" >&2
  exit 1
}

# The driver comes with the image and may still be starting. It is never installed here: that needs a reboot.
wait_for_driver() {
  for _ in $(seq 60); do
    if nvidia-smi -L; then
      return
    fi
    sleep 2
  done
  fail "nvidia-smi finds no GPU after 120 s; choose an image that comes with the driver"
}

# Programs, units, manual page and completions go below /usr/local.
install_archive() {
  if sha256sum --check --status "$stamp" 2>/dev/null; then
    return
  fi
  mkdir -p "$(dirname "$stamp")"
  local archive
  archive=$(dirname "$stamp")/octet.tar.gz
  curl --fail --silent --show-error --location --retry 5 --output "$archive" "$OCTET_ARCHIVE_URL"
  echo "$OCTET_ARCHIVE_SHA256  $archive" >"$stamp.new"
  sha256sum --check "$stamp.new" || fail "$OCTET_ARCHIVE_URL is not the archive of that checksum"
  mkdir -p "$destination/usr/local"
  tar --extract --gzip --file "$archive" --directory "$destination/usr/local" --strip-components=1 --no-same-owner
  "$octet" --version || fail "the archive was built on a newer system than this one"
  mv "$stamp.new" "$stamp"
}

# The key is made on this machine and never leaves it on its own.
make_key() {
  if [[ ! -s $keys ]]; then
    (umask 077 && openssl rand -hex 24 >"$keys")
  fi
}

# The service has no network, so the model is fetched here; the measurement also shows that the device computes.
fetch_model() {
  mkdir -p "$MODELS"
  "$octet" bench --model "$OCTET_MODEL" --download-dir "$MODELS" --device "$OCTET_DEVICE" --max-model-len 512 \
    --prompt-tokens 128 --generate-tokens 16 --batch 1 --repetitions 1
  chmod -R a+rX "$MODELS"
}

configure() {
  if [[ ! -e $environment ]]; then
    cat >"$environment" <<END
OCTET_MODEL=$OCTET_MODEL
OCTET_DOWNLOAD_DIR=$MODELS
OCTET_DEVICE=$OCTET_DEVICE
OCTET_SHUTDOWN_TIMEOUT=$OCTET_SHUTDOWN_TIMEOUT
END
  fi
  install -D -m 644 "$destination/usr/local/share/octet/cuda.conf" \
    "$destination/etc/systemd/system/octet.service.d/cuda.conf"
  systemctl daemon-reload
  systemctl enable --now octet.socket octet.service
}

[[ -r $settings ]] || fail "$settings is missing"
# shellcheck source=/dev/null
. "$settings"
[[ $OCTET_ARCHIVE_URL != *example.com* ]] || fail "set OCTET_ARCHIVE_URL and OCTET_ARCHIVE_SHA256 in $settings"
[[ $MODELS != /home/* && $MODELS != /root/* ]] || fail "the service sees nothing below /home or /root: set MODELS elsewhere"
wait_for_driver
install_archive
make_key
fetch_model
configure
"$octet" health
cat <<END
octet is ready on 127.0.0.1:8000 of this machine. From yours:
  ssh -N -L 8000:127.0.0.1:8000 USER@ADDRESS
The key is in /etc/octet/api-keys: sudo cat /etc/octet/api-keys
END
