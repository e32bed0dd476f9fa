//! Builds mlx-c, gets MLX, and tells cargo how to link them.
//!
//! `plan` decides without looking at the machine, `pins` holds what may be
//! downloaded, the rest does as planned. `docs/building.md` of the top
//! package describes the variables.

mod cache;
mod cmake;
mod cuda;
mod env;
mod fingerprint;
mod mlx;
mod pins;
mod plan;
mod process;
mod python;
mod ship;
mod sources;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use cache::Cache;
use fingerprint::Fingerprint;
use plan::{Cuda, Features, Folders, MacOsVersion, Metallib, Os, Plan, Provider, Request, Target};

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe native part of mlx-sys could not be built.\n\n{error}\n");
            ExitCode::FAILURE
        }
    }
}

/// What all providers share.
struct Build {
    repository: PathBuf,
    out: PathBuf,
    cache: Cache,
    request: Request,
    mlx_c: PathBuf,
    /// mlx-c is the pinned one, so what is made of it may be shared.
    mlx_c_is_pinned: bool,
    /// libmlxc is to be shipped: no binary may name it by its full path.
    relocatable: bool,
}

/// What the Rust side needs to know.
struct Product {
    plan: Plan,
    search: Vec<PathBuf>,
    include: Option<PathBuf>,
    metallib: Option<PathBuf>,
}

fn build() -> Result<(), String> {
    let manifest = PathBuf::from(env::cargo("CARGO_MANIFEST_DIR")?);
    let vendor = manifest.parent().ok_or("this package lies at the root of a file system")?;
    let repository = vendor.parent().ok_or("this package lies at the root of a file system")?;
    let lists = repository.join("CMakeLists.txt");
    // All of vendor, so that putting vendor/mlx or vendor/mlx-c there counts.
    println!("cargo::rerun-if-changed={}", vendor.display());
    println!("cargo::rerun-if-changed={}", lists.display());
    if env::flag("DOCS_RS") {
        // Documentation is not linked, and nothing can be downloaded there.
        return Ok(());
    }
    if !lists.is_file() {
        return Err(format!(
            "{} is missing: this package is built inside its repository",
            lists.display()
        ));
    }

    let target = Target::parse(&env::cargo("TARGET")?)?;
    let host = Target::parse(&env::cargo("HOST")?).ok();
    let has_prefix = env::path("MLX_PREFIX").is_some();
    let features = Features {
        metal: env::feature("metal"),
        metal_jit: env::feature("metal-jit"),
        cuda: env::feature("cuda"),
    };
    let provider = Provider::choose(env::text("MLX_PROVIDER").as_deref(), has_prefix, target)?;
    let (mlx_c, mlx_c_is_pinned) = sources::mlx_c(repository)?;
    let version = sources::version_after(&mlx_c.join("CMakeLists.txt"), "set(MLX_C_VERSION ")?;
    mlx::check_version("mlx-c", &mlx_c, &version, pins::MLX_C_VERSION)?;
    check_bindings(&manifest, &mlx_c)?;

    let cuda_search = features.cuda.then(cuda::Search::new);
    let has_cuda = |cuda| cuda_search.as_ref().is_some_and(|search| search.has(cuda));
    let request = Request {
        target,
        host,
        provider,
        features,
        macos: MacOsVersion::choose(env::text("MACOSX_DEPLOYMENT_TARGET").as_deref())?,
        cuda: Cuda::choose(env::text("MLX_CUDA").as_deref(), has_cuda)?,
        static_prefix: false,
    };
    let out = PathBuf::from(env::cargo("OUT_DIR")?);
    let repository = repository.to_owned();
    let build = Build {
        repository,
        out,
        cache: Cache::open()?,
        request,
        mlx_c,
        mlx_c_is_pinned,
        relocatable: env::flag("MLX_RELOCATABLE"),
    };
    let product = match provider {
        Provider::Wheel => build.with_wheel(cuda_search.as_ref())?,
        Provider::Source => build.with_source()?,
        Provider::Prefix => build.with_prefix()?,
    };
    build.tell_cargo(&product);
    Ok(())
}

/// A warning only: the test `native_bindings` fails, this build need not.
fn check_bindings(manifest: &Path, mlx_c: &Path) -> Result<(), String> {
    let bindings = manifest.join("src/bindings.rs");
    let text = fs::read_to_string(&bindings)
        .map_err(|error| format!("cannot read {}: {error}", bindings.display()))?;
    let found = fingerprint::of_headers(mlx_c)
        .map_err(|error| format!("cannot read the headers of {}: {error}", mlx_c.display()))?;
    if !text.lines().take(5).any(|line| line.ends_with(&found)) {
        println!(
            "cargo::warning=the headers of mlx-c in {} are not those that src/bindings.rs of \
             mlx-sys was generated from; `cargo xtask bindings` makes them fit",
            mlx_c.display()
        );
    }
    Ok(())
}

impl Build {
    fn with_wheel(&self, cuda: Option<&cuda::Search>) -> Result<Product, String> {
        let plan = plan::plan(&self.request)?;
        let wheel = plan.wheel.ok_or("no wheel is planned for this target")?;
        if self.request.target.os == Os::Linux && self.request.host == Some(self.request.target) {
            mlx::check_glibc()?;
        }
        let (folder, installed) = mlx::from_wheel(&self.cache, wheel, self.request.target)?;
        mlx::check_mlx(&installed.include)?;
        let relocatable = self.relocatable;
        let mut rpath = if relocatable {
            vec![ship::rpath(self.request.target).to_owned()]
        } else {
            vec![installed.folder().display().to_string()]
        };
        rpath.extend(cuda.into_iter().flat_map(|search| search.rpath(self.request.cuda)));
        let library = self.request.target.shared_library("mlxc");
        let mut folders = Folders {
            mlx_library: Some(installed.library.clone()),
            mlx_include: Some(installed.include.clone()),
            mlx_c: self.mlx_c.clone(),
            output: self.out.join("lib"),
            rpath,
            ..Folders::default()
        };
        let home = if self.mlx_c_is_pinned {
            let key = format!("mlxc-{}-{}", pins::MLX_C_VERSION, self.inputs(&plan, &folders)?);
            folders.home = (!relocatable).then(|| self.cache.path(&key).join("lib"));
            let essential = format!("lib/{library}");
            let entry = self.cache.entry(&key, &[&essential], |partial| {
                self.cmake(&plan, &folders)?;
                ship::copy_file(&folders.output.join(&library), &partial.join(&essential))?;
                if relocatable { ship::gather(&folder, &partial.join("lib")) } else { Ok(()) }
            })?;
            entry.join("lib")
        } else {
            folders.home = (!relocatable).then(|| folders.output.clone());
            self.cmake(&plan, &folders)?;
            if relocatable {
                ship::gather(&folder, &folders.output)?;
            }
            folders.output.clone()
        };
        // A binary that runs needs both, so losing one of them is a change.
        println!("cargo::rerun-if-changed={}", home.join(&library).display());
        println!("cargo::rerun-if-changed={}", installed.library.display());
        let metallib = installed.folder().join("mlx.metallib");
        Ok(Product {
            metallib: (plan.metallib != Metallib::None).then_some(metallib),
            search: vec![home],
            include: Some(installed.include),
            plan,
        })
    }

    fn with_source(&self) -> Result<Product, String> {
        let plan = plan::plan(&self.request)?;
        let vendored = self.repository.join("vendor/mlx");
        let mlx_source = vendored.exists().then_some(vendored);
        if let Some(source) = &mlx_source {
            mlx::check_mlx(source)?;
        }
        let output = self.out.join("lib");
        let folders = Folders {
            mlx_source: mlx_source.clone(),
            mlx_c: self.mlx_c.clone(),
            home: (!self.relocatable).then(|| output.clone()),
            output: output.clone(),
            ..Folders::default()
        };
        self.cmake(&plan, &folders)?;
        let metallib = (plan.metallib == Metallib::Compiled)
            .then(|| ship::keep_metallib(&self.cache, &output.join("mlx.metallib")))
            .transpose()?;
        let include = mlx_source.unwrap_or_else(|| self.out.join("cmake/_deps/mlx-src"));
        Ok(Product { plan, search: vec![output], include: Some(include), metallib })
    }

    fn with_prefix(&self) -> Result<Product, String> {
        let installed = mlx::from_prefix(self.request.target)?;
        mlx::check_mlx(&installed.include)?;
        let static_prefix = installed.library.extension().is_some_and(|name| name == "a");
        let plan = plan::plan(&Request { static_prefix, ..self.request })?;
        let folder = installed.folder().to_owned();
        let output = self.out.join("lib");
        let folders = Folders {
            mlx_library: Some(installed.library.clone()),
            mlx_include: Some(installed.include.clone()),
            mlx_c: self.mlx_c.clone(),
            home: (!self.relocatable).then(|| output.clone()),
            output: output.clone(),
            rpath: vec![folder.display().to_string()],
            ..Folders::default()
        };
        self.cmake(&plan, &folders)?;
        println!("cargo::rerun-if-changed={}", installed.library.display());
        let metallib = Some(folder.join("mlx.metallib")).filter(|path| path.is_file());
        let search = if plan.shared { vec![output] } else { vec![output, folder] };
        Ok(Product { plan, search, include: Some(installed.include), metallib })
    }

    fn cmake(&self, plan: &Plan, folders: &Folders) -> Result<(), String> {
        cmake::run(
            &self.cache,
            self.request.host,
            &self.repository,
            &self.out.join("cmake"),
            plan.cmake_arguments(folders),
        )
    }

    /// Names a libmlxc by everything that goes into it.
    fn inputs(&self, plan: &Plan, folders: &Folders) -> Result<String, String> {
        let mut fingerprint = Fingerprint::new();
        // CMake's output folder is this build's own and changes nothing.
        let shared = Folders { output: PathBuf::new(), ..folders.clone() };
        for argument in plan.cmake_arguments(&shared) {
            fingerprint.add(argument.as_bytes());
        }
        let files = [
            "CMakeLists.txt",
            "vendor/sources/Cargo.lock",
            "vendor/mlx-sys/cmake/FindMLX.cmake",
            "vendor/mlx-sys/cmake/mlxc_compat.h",
        ];
        for name in files {
            let path = self.repository.join(name);
            let bytes = fs::read(&path)
                .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            fingerprint.add(&bytes);
        }
        fingerprint.add(cmake::compiler_identity()?.as_bytes());
        for name in ["CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "MLX_CMAKE_ARGS"] {
            fingerprint.add(env::text(name).unwrap_or_default().as_bytes());
        }
        Ok(fingerprint.hex())
    }

    fn tell_cargo(&self, product: &Product) {
        let built = |name: &str| {
            let file = format!("lib{name}.a");
            product.search.iter().any(|folder| folder.join(&file).is_file())
        };
        let links_runtime = product.plan.link.contains(&plan::Link::ClangRuntime);
        let clang_runtime = links_runtime.then(clang_runtime).flatten();
        for line in product.plan.cargo_lines(&product.search, built, clang_runtime.as_deref()) {
            println!("{line}");
        }
        let include = product.include.iter().chain([&self.mlx_c]);
        if let Ok(include) = std::env::join_paths(include) {
            println!("cargo::metadata=include={}", include.display());
        }
        let defines = if product.plan.shared { "" } else { "MLX_STATIC" };
        println!("cargo::metadata=defines={defines}");
        println!("cargo::metadata=version={}", pins::MLX_VERSION);
        println!("cargo::metadata=mlx_c={}", self.mlx_c.display());
        if product.plan.shared {
            for folder in &product.search {
                println!("cargo::metadata=lib={}", folder.display());
            }
        }
        if let Some(metallib) = &product.metallib {
            println!("cargo::metadata=metallib={}", metallib.display());
        }
    }
}

/// The folder of `libclang_rt.osx.a` in the selected Xcode.
fn clang_runtime() -> Option<PathBuf> {
    let developer = process::output(Command::new("xcode-select").arg("--print-path")).ok()?;
    let developer = Path::new(developer.trim());
    let toolchains = [
        developer.join("Toolchains/XcodeDefault.xctoolchain/usr/lib/clang"),
        developer.join("usr/lib/clang"),
    ];
    let versions = toolchains.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    versions
        .flatten()
        .map(|version| version.path().join("lib/darwin"))
        .find(|folder| folder.join("libclang_rt.osx.a").is_file())
}
