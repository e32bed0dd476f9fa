//! `rope_theta`, `rope_scaling` and `rope_parameters`.

use serde_json::{Value, json};

use super::{accepted, bundled, published, refused, transformers_5, with, without};

#[test]
fn yarn_is_read() {
    let yarn = accepted(&published(24, 32)).rope_scaling.expect("the 20b has YaRN");
    assert_eq!(yarn.factor, 32.0);
    assert_eq!((yarn.beta_fast, yarn.beta_slow), (32.0, 1.0));
    assert_eq!(yarn.original_max_position_embeddings, 4096);
    assert!(!yarn.truncate);
    assert!(accepted(&bundled()).rope_scaling.expect("YaRN").truncate);
}

#[test]
fn optional_yarn_fields_take_the_values_of_transformers() {
    let fields = ["beta_fast", "beta_slow", "truncate"];
    let sparse = fields.iter().fold(published(24, 32), |config, field| {
        without(&config, &format!("/rope_scaling/{field}"))
    });
    let yarn = accepted(&sparse).rope_scaling.expect("YaRN");
    assert_eq!((yarn.beta_fast, yarn.beta_slow), (32.0, 1.0));
    assert!(yarn.truncate);
}

#[test]
fn no_scaling_must_be_said() {
    let null = with(&bundled(), "/rope_scaling", Value::Null);
    assert_eq!(accepted(&null).rope_scaling, None);
    let default = with(&bundled(), "/rope_scaling", json!({"rope_type": "default"}));
    assert_eq!(accepted(&default).rope_scaling, None);
    let default = with(&transformers_5(), "/rope_parameters/rope_type", "default");
    assert_eq!(accepted(&default).rope_scaling, None);

    let expected = "is missing, as is `rope_parameters`; write null for no scaling";
    let absent = without(&bundled(), "/rope_scaling");
    assert_eq!(refused(&absent, "rope_scaling"), expected);
    let null = with(&transformers_5(), "/rope_parameters", Value::Null);
    assert_eq!(refused(&null, "rope_scaling"), expected);
}

#[test]
fn every_field_of_the_block_is_checked() {
    let check = |key: &str, value: Value, expected: &str| {
        for (config, block) in [(bundled(), "rope_scaling"), (transformers_5(), "rope_parameters")]
        {
            let config = with(&config, &format!("/{block}/{key}"), value.clone());
            let reason = refused(&config, &format!("{block}.{key}"));
            assert!(reason.contains(expected), "{block}.{key}: {reason}");
        }
    };
    check("rope_type", json!("longrope"), "must be `yarn` or `default`, not \"longrope\"");
    check("rope_type", json!(null), "is required, but null");
    check("type", json!("default"), "disagrees with `rope_type`");
    for value in [json!(0), json!(0.5), json!(-32), json!(1e39), json!(1e9), json!("32")] {
        check("factor", value, "must be a number from 1 to 65536, not ");
    }
    check("factor", json!(null), "is required, but null");
    for key in ["beta_fast", "beta_slow"] {
        for value in [json!(0), json!(-1), json!(1e-50), json!(1e39), json!(65_537), json!(true)] {
            check(key, value, "must be a number above 0 and at most 65536, not ");
        }
    }
    check("beta_fast", json!(1.0), "must be above beta_slow (1), not 1");
    check("beta_fast", json!(0.5), "must be above beta_slow (1), not 0.5");
    for value in [json!(0), json!(4096.0), json!(-1), json!(1_u64 << 40)] {
        check("original_max_position_embeddings", value, "must be an integer from 1 to 16777216");
    }
    check("original_max_position_embeddings", json!(null), "is required, but null");
    check("truncate", json!("no"), "must be true or false, not \"no\"");
    check("truncate", json!(0), "must be true or false, not 0");
    check("attention_factor", json!(1.0), "not supported");
    check("mscale", json!(1.0), "not supported");
    check("mscale_all_dim", json!(0.707), "not supported");
    check("partial_rotary_factor", json!(0.5), "must be absent or 1, not 0.5");

    for value in [json!(1), json!([]), json!("yarn"), json!(false)] {
        let reason = refused(&with(&bundled(), "/rope_scaling", value), "rope_scaling");
        assert!(reason.starts_with("must be an object, not "), "{reason}");
    }
}

#[test]
fn fields_that_change_nothing_are_accepted() {
    let plain = accepted(&bundled());
    // 0.1 ln(32) + 1 is what is computed anyway.
    let fields = [
        ("attention_factor", 1.346_573_6),
        ("mscale", 0.0),
        ("partial_rotary_factor", 1.0),
        ("rope_theta", 150_000.0),
    ];
    for (key, value) in fields {
        assert_eq!(accepted(&with(&bundled(), &format!("/rope_scaling/{key}"), value)), plain);
    }
}

#[test]
fn the_older_name_type_is_understood() {
    let old = without(&with(&bundled(), "/rope_scaling/type", "yarn"), "/rope_scaling/rope_type");
    assert_eq!(accepted(&old), accepted(&bundled()));
}

#[test]
fn both_spellings_at_once_must_agree() {
    let mut both = transformers_5();
    both["rope_theta"] = json!(150_000);
    both["rope_scaling"] = published(24, 32)["rope_scaling"].clone();
    assert_eq!(accepted(&both), accepted(&published(24, 32)));
    // A null beside the new spelling says nothing.
    let null = with(&both, "/rope_scaling", Value::Null);
    assert_eq!(accepted(&null), accepted(&published(24, 32)));

    let other = with(&both, "/rope_scaling/factor", 16.0);
    assert_eq!(refused(&other, "rope_scaling"), "disagrees with `rope_parameters`");
    let other = with(&both, "/rope_scaling/truncate", true);
    assert_eq!(refused(&other, "rope_scaling"), "disagrees with `rope_parameters`");
    let other = with(&both, "/rope_theta", 10_000);
    let reason = refused(&other, "rope_parameters.rope_theta");
    assert_eq!(reason, "is 150000, but `rope_theta` stands elsewhere with 10000");
}

#[test]
fn the_base_may_stand_beside_rope_parameters() {
    let mut config = transformers_5();
    let theta = super::remove(&mut config, "/rope_parameters/rope_theta");
    assert_eq!(refused(&config, "rope_theta"), "is missing");
    config["rope_theta"] = theta;
    assert_eq!(accepted(&config), accepted(&published(24, 32)));
}
