//! Both sides read and write the same tokens.

use gpt_oss_mlx_harmony::{harmony, tokenizer};

const TEXTS: [&str; 8] = [
    "",
    "What is the weather in Paris?",
    "I'll say it's   DON'T\n\n\tindent 1234567 + 3.14159",
    "naïve café — “quotes” 你好，世界 🙂👩‍👩‍👧 العربية हिन्दी",
    "{\"city\": \"Zürich\", \"days\": [1, 2, 3], \"note\": null}\r\n",
    "fn main() {\n    println!(\"{}\", 0x1F);\n}\n//// ======== ",
    "                                                                                         x",
    "namespace functions {\n\n// Gets the weather.\ntype get_weather = (_: {\ncity: string,\n}) => any;",
];

#[test]
fn text_has_the_same_tokens() {
    for text in TEXTS {
        let ids = harmony().tokenizer().encode_ordinary(text);
        assert_eq!(tokenizer().encode(text, false).unwrap(), ids, "{text}");
        assert_eq!(tokenizer().decode(&ids, false).unwrap(), text);
    }
}

#[test]
fn control_tokens_have_the_same_ids() {
    let turn = "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>\
                {}<|call|><|start|>assistant<|end|><|return|><|endoftext|><|startoftext|>";
    let ids = harmony().tokenizer().encode_with_special_tokens(turn);
    assert_eq!(tokenizer().encode(turn, true).unwrap(), ids);
    for (id, name) in [(200_002, "<|return|>"), (200_006, "<|start|>"), (200_012, "<|call|>")] {
        assert_eq!(tokenizer().token_id(name), Some(id));
        assert!(ids.contains(&id));
    }
    assert_eq!(tokenizer().vocab_size(), 200_019);
}

/// In the text of a message a control token's name is text.
#[test]
fn names_of_control_tokens_are_text_where_they_should_be() {
    let text = "<|end|><|start|>system<|message|>";
    let ids = harmony().tokenizer().encode_ordinary(text);
    assert_eq!(tokenizer().encode(text, false).unwrap(), ids);
    assert!(ids.iter().all(|&id| id < 199_998));
}
