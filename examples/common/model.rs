//! `--model NAME_OR_DIR`, for all examples: a folder, or a name on the Hugging Face Hub, with bars on
//! stderr for what is downloaded.

use std::path::PathBuf;

/// The folder to load.
#[cfg(not(feature = "hub"))]
pub fn folder(model: &str) -> gpt_oss_mlx::Result<PathBuf> {
    Ok(model.into())
}

/// The folder to load, once what is missing there has been downloaded.
#[cfg(feature = "hub")]
pub fn folder(model: &str) -> gpt_oss_mlx::Result<PathBuf> {
    use gpt_oss_mlx::hub::{HubOptions, ModelRef};
    match ModelRef::parse(model)? {
        ModelRef::Folder(folder) => Ok(folder),
        name => {
            let mut shown = bars::Shown::default();
            name.resolve(&HubOptions::from_env()?, |event| shown.show(event))
        }
    }
}

#[cfg(feature = "hub")]
mod bars {
    use std::io::{self, IsTerminal, Write};

    use gpt_oss_mlx::hub::HubProgress;
    use indicatif::{DecimalBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

    /// What is shown of the file at hand.
    #[derive(Default)]
    pub struct Shown(Option<(String, ProgressBar)>);

    impl Shown {
        /// A bar for each file, or without a terminal a line.
        pub fn show(&mut self, event: HubProgress<'_>) {
            match event {
                HubProgress::Missing { files, bytes } => {
                    self.say(&format!("{files} files, {} to download", DecimalBytes(bytes)));
                }
                HubProgress::File { name, done, total } => {
                    if self.0.as_ref().is_none_or(|(shown, _)| shown != name) {
                        if !io::stderr().is_terminal() {
                            self.say(&format!("downloading {name}, {}", DecimalBytes(total)));
                        }
                        self.0 = Some((name.into(), bar(name, total)));
                    }
                    if let Some((_, bar)) = &self.0 {
                        bar.set_position(done);
                        if done == total {
                            bar.abandon();
                        }
                    }
                }
                HubProgress::Waiting { wait, reason } => {
                    self.say(&format!("{reason}; trying again in {:.1} s", wait.as_secs_f64()));
                }
                HubProgress::Cached { reason } => {
                    self.say(&format!("{reason}; using what the cache has"));
                }
                _ => {}
            }
        }

        /// A line above the bar. Unlike `eprintln!` this does not panic when nobody reads there.
        fn say(&self, line: &str) {
            let say = || drop(writeln!(io::stderr(), "{line}"));
            match &self.0 {
                Some((_, bar)) => bar.suspend(say),
                None => say(),
            }
        }
    }

    fn bar(name: &str, total: u64) -> ProgressBar {
        let target = match io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr_with_hz(10),
            false => ProgressDrawTarget::hidden(),
        };
        let template = "{msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} \
                        {decimal_bytes_per_sec}, {eta} left";
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::with_draw_target(Some(total), target)
            .with_style(style)
            .with_message(name.to_owned())
    }
}
