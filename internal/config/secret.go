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
type Secret struct{ value *string }

// NewSecret wraps a value.
func NewSecret(value string) Secret { return Secret{&value} }

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

// UnmarshalYAML reads the value from where the file says it is. Errors name
// the place, never the value.
func (s *Secret) UnmarshalYAML(node *yaml.Node) error {
	switch node.Kind {
	case yaml.ScalarNode:
		*s = NewSecret(node.Value)
		return nil
	case yaml.MappingNode:
	default:
		return fmt.Errorf("line %d: a secret is a value, {file: path} or {env: NAME}", node.Line)
	}
	var from map[string]string
	if err := node.Decode(&from); err != nil || len(from) != 1 {
		return fmt.Errorf("line %d: a secret is a value, {file: path} or {env: NAME}", node.Line)
	}
	for kind, name := range from {
		value, err := lookup(kind, name)
		if err != nil {
			return fmt.Errorf("line %d: %w", node.Line, err)
		}
		*s = NewSecret(value)
	}
	return nil
}

func lookup(kind, name string) (string, error) {
	switch kind {
	case "file":
		content, err := os.ReadFile(name)
		if err != nil {
			return "", fmt.Errorf("reading a secret: %w", err)
		}
		return strings.TrimSpace(string(content)), nil
	case "env":
		value, ok := os.LookupEnv(name)
		if !ok {
			return "", fmt.Errorf("the environment has no %s", name)
		}
		return value, nil
	}
	return "", errors.New("a secret is a value, {file: path} or {env: NAME}")
}
