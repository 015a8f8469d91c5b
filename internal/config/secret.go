package config

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Secret is a value that cannot be printed by accident. In the file it is the
// value itself, or {file: path}, or {env: NAME}.
type Secret struct {
	value *string
	fault error // why the place that the file names gave no value
}

// NewSecret wraps a value.
func NewSecret(value string) Secret { return Secret{value: &value} }

// Reveal returns the value itself.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsSet tells whether there is a value.
func (s Secret) IsSet() bool { return s.Reveal() != "" }

func (s Secret) masked() string {
	if s.IsSet() {
		return "[set]"
	}
	return "[not set]"
}

func (s Secret) String() string               { return s.masked() }
func (s Secret) GoString() string             { return s.masked() }
func (s Secret) LogValue() slog.Value         { return slog.StringValue(s.masked()) }
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.masked()), nil }
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + s.masked() + `"`), nil }
func (s Secret) MarshalYAML() (any, error)    { return s.masked(), nil }

var errSecretForm = errors.New("a secret is a value, {file: path} or {env: NAME}")

// UnmarshalYAML reads the value from where the file says it is. It never fails:
// yaml would stop at the first failure, and Check is to tell all of them, but
// for those of secrets that the environment replaces. Faults name the place,
// never the value.
func (s *Secret) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode {
		*s = NewSecret(node.Value)
		return nil
	}
	s.value, s.fault = lookup(node)
	return nil
}

func lookup(node *yaml.Node) (*string, error) {
	var from map[string]string
	if err := node.Decode(&from); err != nil || len(from) != 1 {
		return nil, errSecretForm // err may quote a value
	}
	if name, ok := from["file"]; ok {
		content, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("reading a secret: %w", err)
		}
		return new(strings.TrimSpace(string(content))), nil
	}
	if name, ok := from["env"]; ok {
		value, ok := os.LookupEnv(name)
		if !ok {
			return nil, fmt.Errorf("the environment has no %s", name)
		}
		return &value, nil
	}
	return nil, errSecretForm
}
