//! Start-up files for rented machines: one script, wrapped for cloud-init with the settings of each
//! place, so that a machine comes up with one paste.

use anyhow::Result;

use super::{Generated, deploy};

/// A place where machines are rented.
struct Place {
    path: &'static str,
    /// What to know before pasting.
    about: &'static str,
    /// Where model files lie.
    models: &'static str,
    /// Seconds that running answers get when the machine is taken away.
    shutdown_timeout: u32,
}

const PLACES: &[Place] = &[
    Place {
        path: "deploy/cloud/lambda-a10.yaml",
        about: "Lambda Cloud, gpu_1x_a10 (24 GB), image family lambda-stack-24-04, which comes with the driver.\n\
                # With a file system attached, MODELS below where it is mounted keeps the model for the next machine;\n\
                # not below /home, where the service sees nothing.",
        models: "/srv/models",
        shutdown_timeout: 30,
    },
    Place {
        path: "deploy/cloud/gcp-l4-t4.yaml",
        about: "Google Cloud, L4 (24 GB, g2-standard-4) or T4 (16 GB, n1-standard-4 with one nvidia-tesla-t4), from an\n\
                # Ubuntu image with the driver. Spot machines are told about 30 s before they end.",
        models: "/srv/models",
        shutdown_timeout: 20,
    },
];

/// The start-up files.
pub fn files() -> Result<Vec<Generated>> {
    let script = std::fs::read_to_string(deploy("cloud/install.sh"))?;
    let file = |place: &Place| Generated {
        path: place.path,
        text: user_data(place, &script),
    };
    Ok(PLACES.iter().map(file).collect())
}

fn user_data(place: &Place, script: &str) -> String {
    let Place {
        about,
        models,
        shutdown_timeout,
        ..
    } = place;
    let script: String = script
        .lines()
        .map(|line| match line {
            "" => "\n".to_owned(),
            line => format!("      {line}\n"),
        })
        .collect();
    format!(
        "#cloud-config
# {about}
# Fill in the two lines about the archive, paste all of it as user data. Progress: /var/log/cloud-init-output.log
# Written by `cargo xtask dashboards` from install.sh.
write_files:
  - path: /etc/octet/install
    permissions: '0600'
    content: |
      # A tar.gz of `cargo xtask dist`, where this machine can reach it, and what sha256sum says of it.
      OCTET_ARCHIVE_URL=https://example.com/octet.tar.gz
      OCTET_ARCHIVE_SHA256=
      # A hub id or a folder.
      OCTET_MODEL=Qwen/Qwen2.5-7B-Instruct
      OCTET_DEVICE=cuda
      MODELS={models}
      OCTET_SHUTDOWN_TIMEOUT={shutdown_timeout}
  - path: /usr/local/sbin/octet-install
    permissions: '0755'
    content: |
{script}runcmd:
  - [/usr/local/sbin/octet-install]
"
    )
}
