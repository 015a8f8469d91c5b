package config_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"cardorder/internal/config"
)

const hidden = "hunter2-hunter2"

// holder has a secret in an unexported field too, where methods are not called.
type holder struct {
	Secret  config.Secret
	Pointer *config.Secret
	List    []config.Secret
	private config.Secret
}

func TestSecretIsNotPrinted(t *testing.T) {
	t.Parallel()
	s := config.NewSecret(hidden)
	h := holder{s, &s, []config.Secret{s}, s}
	var out bytes.Buffer
	for _, v := range []any{s, &s, h, &h, []any{h}, map[string]any{"k": h}, fmt.Errorf("with %v", s)} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%p"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		fmt.Fprintln(&out, v)
		for _, log := range []*slog.Logger{slog.New(slog.NewTextHandler(&out, nil)), slog.New(slog.NewJSONHandler(&out, nil))} {
			log.Info("a secret", "value", v, slog.Group("group", "value", v))
		}
		text, err := json.Marshal(v)
		if err != nil {
			t.Error(err)
		}
		out.Write(text)
	}
	for _, v := range []any{s, &s, h.List, map[string]config.Secret{"k": s}, struct{ S config.Secret }{s}} {
		text, err := yaml.Marshal(v)
		if err != nil {
			t.Error(err)
		}
		out.Write(text)
	}
	text, err := s.MarshalText()
	if err != nil {
		t.Error(err)
	}
	out.Write(text)
	wantNone(t, out.String(), hidden, fmt.Sprintf("%x", hidden), fmt.Sprintf("%X", hidden))
	if got := fmt.Sprint(s, config.Secret{}, config.NewSecret("")); got != "[set] [not set] [not set]" {
		t.Errorf("printed as %q", got)
	}
	if got := fmt.Sprintf("%#v %#v", s, h.Pointer); got != "[set] [set]" {
		t.Errorf("printed as %q", got)
	}
	if s.Reveal() != hidden || !s.IsSet() || config.NewSecret("").IsSet() {
		t.Error("the value is lost")
	}
}

func TestSecretComesFrom(t *testing.T) {
	t.Setenv("CONFIG_TEST_SECRET", hidden)
	t.Setenv("CONFIG_TEST_EMPTY", "")
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("\n "+hidden+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		hidden:                      hidden,
		`"` + hidden + `"`:          hidden,
		"{file: " + file + "}":      hidden,
		"{env: CONFIG_TEST_SECRET}": hidden,
		"{env: CONFIG_TEST_EMPTY}":  "",
		"0123":                      "0123", // a text, also where YAML sees a number
		"true":                      "true",
		"2030-01-01":                "2030-01-01",
		"":                          "",
		"~":                         "",
		"|\n  two\n  lines\n":       "two\nlines\n",
		"&a {env: CONFIG_TEST_SECRET}\nother: *a": hidden,
	} {
		var got struct{ S, Other config.Secret }
		if err := yaml.Unmarshal([]byte("s: "+text), &got); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if got.S.Reveal() != want {
			t.Errorf("%q: %q, want %q", text, got.S.Reveal(), want)
		}
	}
}

// wantNone fails when a text holds one of the values.
func wantNone(t *testing.T, text string, values ...string) {
	t.Helper()
	for _, value := range values {
		if i := strings.Index(text, value); i >= 0 {
			t.Errorf("%q is told: ...%s", value, text[max(0, i-60):min(len(text), i+len(value)+20)])
		}
	}
}
