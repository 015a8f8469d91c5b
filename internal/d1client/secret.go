package d1client

import "log/slog"

const redacted = "[redacted]"

// secret holds an access token or an assertion, and cannot be printed. It is a
// struct around a pointer, not a string type: that one would leak through any
// unexported field, where fmt cannot call its methods.
type secret struct{ value *string }

func newSecret(s string) secret { return secret{&s} }

func (s secret) reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

func (secret) String() string               { return redacted }
func (secret) GoString() string             { return redacted }
func (secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
