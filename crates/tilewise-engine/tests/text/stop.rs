//! Texts that end before a stop string.

use tilewise_engine::tokenizer::{StopStrings, TextStream};

use super::{Random, byte_tokenizer};

/// Where a text ends by the definition: at the first place at which a stop string is complete, before the longest.
fn naive_end<'a>(text: &str, stops: &'a [String]) -> Option<(usize, &'a str)> {
    let ends = (0..=text.len()).filter(|&end| text.is_char_boundary(end));
    let longest = |end: usize| {
        let complete = stops.iter().filter(|stop| !stop.is_empty() && text[..end].ends_with(stop.as_str()));
        complete.max_by_key(|stop| stop.len()).map(|stop| (end - stop.len(), stop.as_str()))
    };
    ends.into_iter().find_map(longest)
}

#[test]
fn a_text_ends_before_its_first_stop_string_however_it_is_cut() {
    let tokenizer = byte_tokenizer(None).unwrap();
    let mut stopped = 0;
    for seed in 0..3000 {
        let mut random = Random(seed);
        let stops: Vec<String> = (0..random.below(4)).map(|_| random.text(4)).collect();
        let text = random.text(40);
        let want = naive_end(&text, &stops);
        let what = format!("seed {seed}: {text:?}, {stops:?}");

        // By bytes, which cut characters, as tokens.
        let mut stream = TextStream::new(stops.clone());
        let (mut shown, mut stop, mut read) = (String::new(), None, 0);
        for byte in text.bytes() {
            let piece = stream.push(&tokenizer, byte.into()).unwrap();
            shown.push_str(&piece.text);
            read += 1;
            if piece.stop.is_some() {
                stop = piece.stop;
                break;
            }
            let unseen = &text[shown.len()..read.max(shown.len()).min(text.floor_char_boundary(read))];
            assert!(
                unseen.is_empty() || stops.iter().any(|stop| stop.starts_with(unseen)),
                "{what}: {unseen:?} is held back for nothing"
            );
        }
        if stop.is_none() {
            shown.push_str(&stream.finish(&tokenizer).unwrap().text);
        }
        assert_eq!(shown, text[..want.map_or(text.len(), |end| end.0)], "{what}");
        assert_eq!(stop.as_deref(), want.map(|end| end.1), "{what}");
        if let Some((start, string)) = want {
            assert_eq!(
                read,
                start + string.len(),
                "{what}: it ends with the token that completes the string"
            );
        }

        // By pieces of any length.
        let mut strings = StopStrings::new(stops.clone());
        let (mut pieces, mut rest, mut end) = (String::new(), text.as_str(), None);
        while !rest.is_empty() && end.is_none() {
            let cut =
                rest.floor_char_boundary(1 + random.below(9)).max(rest.chars().next().unwrap().len_utf8());
            let (certain, stop) = strings.push(&rest[..cut]);
            pieces.push_str(&certain);
            (rest, end) = (&rest[cut..], stop);
        }
        pieces.push_str(&strings.finish());
        assert_eq!((pieces, end), (shown, stop), "{what}");
        stopped += usize::from(want.is_some());
    }
    assert!((500..2500).contains(&stopped), "{stopped} of 3000 texts were stopped");
}
