//! Dependencies point one way: schemas ← stages ← engine, models ← pipeline ← tests ← benches. One crate knows Kafka.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::LazyLock,
};

use serde_json::Value;
use tonearm_tests::{imports, root};

/// The crates of the workspace: what each may depend on of the others.
const LAYERS: [(&str, &[&str]); 7] = [
    ("tonearm-schemas", &[]),
    ("tonearm-stages", &["tonearm-schemas"]),
    ("tonearm-models", &["tonearm-schemas", "tonearm-stages"]),
    ("tonearm-engine", &["tonearm-schemas", "tonearm-stages"]),
    ("tonearm", &["tonearm-schemas", "tonearm-stages", "tonearm-models", "tonearm-engine"]),
    ("tonearm-tests", &["tonearm-schemas", "tonearm-stages", "tonearm-models", "tonearm"]),
    // The benches drive the real program on a real broker by the means of the tests.
    ("tonearm-benches", &["tonearm-schemas", "tonearm-stages", "tonearm-models", "tonearm", "tonearm-tests"]),
];

struct Graph {
    /// Names of the workspace's own crates.
    members: BTreeSet<String>,
    names: BTreeMap<String, String>,
    /// By id: what a crate needs to be built and used; tests' needs left out.
    needs: BTreeMap<String, Vec<String>>,
    /// By name: every dependency a crate of ours writes down, tests' needs too.
    declared: BTreeMap<String, BTreeSet<String>>,
}

static GRAPH: LazyLock<Graph> = LazyLock::new(|| {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(root())
        .args(["metadata", "--format-version", "1", "--locked"])
        .output()
        .expect("cargo can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let list = |value: &Value| value.as_array().expect("a list").clone();

    let ids: Vec<String> = list(&metadata["workspace_members"]).iter().map(text).collect();
    let mut graph =
        Graph { members: BTreeSet::new(), names: BTreeMap::new(), needs: BTreeMap::new(), declared: BTreeMap::new() };
    for package in list(&metadata["packages"]) {
        let (id, name) = (text(&package["id"]), text(&package["name"]));
        if ids.contains(&id) {
            graph.members.insert(name.clone());
            let declared = list(&package["dependencies"]).iter().map(|needed| text(&needed["name"])).collect();
            graph.declared.insert(name.clone(), declared);
        }
        graph.names.insert(id, name);
    }
    for node in list(&metadata["resolve"]["nodes"]) {
        let is_needed = |needed: &Value| list(&needed["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev");
        let deps = list(&node["deps"]);
        let needs = deps.iter().filter(|needed| is_needed(needed)).map(|needed| text(&needed["pkg"])).collect();
        graph.needs.insert(text(&node["id"]), needs);
    }
    graph
});

/// Everything the crate `name` is built from.
fn tree(name: &str) -> BTreeSet<&'static str> {
    let graph = &*GRAPH;
    let mut open: Vec<&String> = graph.names.iter().filter(|(_, known)| *known == name).map(|(id, _)| id).collect();
    assert!(!open.is_empty(), "there is no crate {name}");
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if seen.insert(id) {
            open.extend(&graph.needs[id]);
        }
    }
    seen.into_iter().map(|id| graph.names[id].as_str()).collect()
}

fn assert_without(name: &str, unwanted: &[&str]) {
    let tree = tree(name);
    for unwanted in unwanted {
        assert!(!tree.contains(unwanted), "{name} is built from {unwanted}");
    }
}

#[test]
fn every_crate_depends_only_on_those_below_it() {
    let graph = &*GRAPH;
    for name in &graph.members {
        assert!(LAYERS.iter().any(|(known, _)| known == name), "{name} has no layer");
    }
    for (name, below) in LAYERS {
        // A crate may not be there yet, or not be one of this workspace.
        for needed in graph.declared.get(name).into_iter().flat_map(|declared| declared.intersection(&graph.members)) {
            assert!(below.contains(&needed.as_str()), "{name} depends on {needed}");
        }
    }
}

#[test]
fn no_files_of_a_crate_import_each_other_in_a_circle() {
    for src in ["schemas/src", "models/src", "pipeline/engine/src", "pipeline/src"] {
        let imports = imports::of(&root().join(src));
        let within = |circle: &BTreeSet<String>| {
            let lines = circle.iter().map(|file| {
                let imported: Vec<&str> = imports[file].intersection(circle).map(String::as_str).collect();
                format!("  {file} imports {}", imported.join(", "))
            });
            lines.collect::<Vec<_>>().join("\n")
        };
        let circles: Vec<String> = imports::circles(&imports).iter().map(within).collect();
        assert!(circles.is_empty(), "in {src} these import each other:\n{}", circles.join("\nand these:\n"));
    }
}

#[test]
fn schemas_know_neither_kafka_nor_tokio_nor_libtorch() {
    assert_without("tonearm-schemas", &["rdkafka", "rdkafka-sys", "tokio", "tch", "torch-sys"]);
}

#[test]
fn stages_know_neither_kafka_nor_tokio() {
    assert_without("tonearm-stages", &["rdkafka", "rdkafka-sys", "tokio"]);
}

#[test]
fn models_know_neither_kafka_nor_tokio() {
    assert_without("tonearm-models", &["rdkafka", "rdkafka-sys", "tokio"]);
}

#[test]
fn the_engine_knows_neither_kafka_nor_http() {
    assert_without("tonearm-engine", &["rdkafka", "rdkafka-sys", "tokio", "axum", "hyper"]);
}

#[test]
fn only_the_pipeline_and_what_tries_it_out_know_kafka() {
    let know: Vec<&String> = GRAPH
        .declared
        .iter()
        .filter(|(_, needed)| needed.iter().any(|name| name.starts_with("rdkafka")))
        .map(|(name, _)| name)
        .collect();
    for name in &know {
        assert!(["tonearm", "tonearm-tests", "tonearm-benches"].contains(&name.as_str()), "{name} knows Kafka");
    }
    // Otherwise the walk above finds nothing anywhere.
    assert!(tree("tonearm").contains("rdkafka-sys") && tree("tonearm").contains("torch-sys"));
}
