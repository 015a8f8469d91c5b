package d1sim

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"regexp"
	"slices"
	"unicode/utf8"
)

// D1's error codes for a request that is refused.
const (
	invalidFormat = "FIELD_INVALID_FORMAT"
	invalidValue  = "FIELD_INVALID_VALUE"
	cryptoError   = "CRYPTO_ERROR"
	parsingError  = "PARSING_ERROR"
)

const unknownMember = "is not known here"

// fault is the first thing wrong with an order. It names the field, never the value.
type fault struct{ code, field, why string }

func (f *fault) String() string { return f.field + ": " + f.why }

// check looks at one member of a JSON document decoded into map[string]any.
type check func(field string, value any) *fault

// member is a member of a JSON object.
type member struct {
	name     string
	required bool
	check    check
}

func required(name string, c check) member { return member{name, true, c} }
func optional(name string, c check) member { return member{name, false, c} }

// object checks the members in the given order, then that there are no others.
func object(members ...member) check {
	return func(field string, value any) *fault {
		object, ok := value.(map[string]any)
		if !ok {
			return &fault{invalidFormat, field, "must be an object"}
		}
		known := make(map[string]bool, len(members))
		for _, m := range members {
			known[m.name] = true
			value, present := object[m.name]
			if !present {
				if m.required {
					return &fault{invalidValue, within(field, m.name), "is required"}
				}
				continue
			}
			if f := m.check(within(field, m.name), value); f != nil {
				return f
			}
		}
		for _, name := range slices.Sorted(maps.Keys(object)) {
			if !known[name] {
				return &fault{invalidValue, within(field, name), unknownMember}
			}
		}
		return nil
	}
}

func within(field, name string) string {
	if field == "" {
		return name
	}
	return field + "." + name
}

// anyText checks for a string that is not empty.
func anyText(field string, value any) *fault { return text(1<<16)(field, value) }

// text checks for a string of 1 to limit characters.
func text(limit int) check {
	return func(field string, value any) *fault {
		text, ok := value.(string)
		switch {
		case !ok:
			return &fault{invalidFormat, field, "must be a string"}
		case text == "" || utf8.RuneCountInString(text) > limit:
			return &fault{invalidFormat, field, "is empty or too long"}
		}
		return nil
	}
}

func matching(pattern *regexp.Regexp) check {
	return func(field string, value any) *fault {
		text, ok := value.(string)
		switch {
		case !ok:
			return &fault{invalidFormat, field, "must be a string"}
		case !pattern.MatchString(text):
			return &fault{invalidFormat, field, "must match " + pattern.String()}
		}
		return nil
	}
}

func among(allowed ...string) check {
	return func(field string, value any) *fault {
		text, ok := value.(string)
		switch {
		case !ok:
			return &fault{invalidFormat, field, "must be a string"}
		case !slices.Contains(allowed, text):
			return &fault{invalidValue, field, "is not an allowed value"}
		}
		return nil
	}
}

func boolean(field string, value any) *fault {
	if _, ok := value.(bool); !ok {
		return &fault{invalidFormat, field, "must be a boolean"}
	}
	return nil
}

// texts checks for a list of strings that are not empty.
func texts(field string, value any) *fault {
	list, ok := value.([]any)
	if !ok {
		return &fault{invalidFormat, field, "must be a list"}
	}
	for _, item := range list {
		if f := anyText(field, item); f != nil {
			return f
		}
	}
	return nil
}

// parseObject reads a text that is exactly one JSON object.
func parseObject(text []byte) (map[string]any, error) {
	var object map[string]any
	if err := decode(json.NewDecoder(bytes.NewReader(text)), &object); err != nil {
		return nil, err
	}
	if object == nil {
		return nil, errors.New("null is not an object")
	}
	return object, nil
}

// decodeStrict reads a text that is exactly one JSON value, unknown members refused.
func decodeStrict(text []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	return decode(decoder, into)
}

func decode(decoder *json.Decoder, into any) error {
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return errors.New("there is more after the first JSON value")
	}
	return nil
}
