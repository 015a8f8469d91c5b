package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// decode reads text strictly into a struct. faults are those of single settings,
// the rest of it is filled; err means that text could not be read at all.
//
// yaml quotes values in its errors, and any of them may be a secret that stands
// in the wrong place. So only what is known to hold none is handed on.
func decode(text []byte, into any) (faults []error, err error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	err = dec.Decode(into)
	if errors.Is(err, io.EOF) {
		return nil, nil // an empty file
	}
	if wrong, ok := errors.AsType[*yaml.TypeError](err); ok {
		skipped := false
		for _, message := range wrong.Errors {
			faults = append(faults, errors.New(settingFault(message)))
			skipped = skipped || repeated.MatchString(message)
		}
		if skipped { // yaml skips all that stands beside a repeated name
			return nil, errors.Join(faults...)
		}
		err = nil
	}
	if err == nil {
		if err = dec.Decode(new(yaml.Node)); errors.Is(err, io.EOF) {
			return faults, nil
		}
		if err == nil {
			return nil, errors.New("there is a second document (after ---), which nobody would read")
		}
	}
	return nil, errors.New(syntaxFault(err.Error()))
}

var (
	wrongType = regexp.MustCompile(`(?s)^(line \d+): cannot unmarshal .* into (\S+)$`)
	unknown   = regexp.MustCompile(`(?s)^(line \d+): field (.*) not found in type \S+$`)
	repeated  = regexp.MustCompile(`(?s)^(line \d+): mapping key "(.*)" already defined at (line \d+)$`)
	named     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]{0,39}$`) // as settings are
)

// renamed are settings that had another name.
var renamed = map[string]string{"retryRefusedFor": "retry404For", "migrateUrl": "directUrl"}

func settingFault(message string) string {
	if m := wrongType.FindStringSubmatch(message); m != nil {
		return m[1] + ": must be " + wanted(m[2])
	}
	if m := unknown.FindStringSubmatch(message); m != nil {
		if now := renamed[m[2]]; now != "" {
			return fmt.Sprintf("%s: the setting %s is now called %s", m[1], m[2], now)
		}
		return m[1] + ": unknown setting" + name(m[2])
	}
	if m := repeated.FindStringSubmatch(message); m != nil {
		return fmt.Sprintf("%s: the setting%s stands in %s already", m[1], name(m[2]), m[3])
	}
	line, _, _ := strings.Cut(message, ":")
	return line + ": cannot be read"
}

func name(s string) string {
	if !named.MatchString(s) {
		return ""
	}
	return " " + s
}

// wanted says what a Go type is in the file.
func wanted(goType string) string {
	switch goType {
	case "string":
		return "a text"
	case "bool":
		return "true or false"
	case "int", "int32":
		return "a whole number"
	case "time.Duration":
		return "a duration such as 30s, 5m or 720h"
	case "[]string":
		return "a list of texts"
	}
	if strings.HasPrefix(goType, "[]") {
		return "a list of settings"
	}
	return "settings of its own (name: value)"
}

func syntaxFault(message string) string {
	message = strings.TrimPrefix(message, "yaml: ")
	switch {
	case strings.HasPrefix(message, "parsing time "):
		return "notAfter must be a time such as 2030-01-01T00:00:00Z"
	case strings.Contains(message, "anchor '"):
		return "a value that begins with * must stand in quotes"
	case strings.ContainsAny(message, "`\""):
		return "a value does not fit its tag (the word with !! before it)"
	}
	return "not YAML: " + message
}
