package config_test

import (
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"cardorder/internal/config"
)

// setting is one leaf of the configuration.
type setting struct {
	kind  string
	value string // in effect with the least configuration
}

// settings walks v and returns what can be set, by path.
func settings(path string, v reflect.Value, into map[string]setting) {
	kinds := map[reflect.Type]string{
		reflect.TypeFor[config.Secret](): "secret", reflect.TypeFor[time.Duration](): "duration", reflect.TypeFor[time.Time](): "time",
		reflect.TypeFor[[]string](): "list of texts", reflect.TypeFor[string](): "text", reflect.TypeFor[bool](): "true/false",
		reflect.TypeFor[int](): "number", reflect.TypeFor[int32](): "number", reflect.TypeFor[config.WholeNumber](): "number",
		reflect.TypeFor[map[string]time.Duration](): "durations by name",
	}
	if kind, ok := kinds[v.Type()]; ok {
		into[path] = setting{kind, strings.TrimPrefix(fmt.Sprint(v), "map")}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if kind, ok := kinds[v.Type().Elem()]; ok {
			into[path] = setting{kind: kind} // nil: it has no default
			if !v.IsNil() {
				into[path] = setting{kind, fmt.Sprint(v.Elem())}
			}
			return
		}
		settings(path, reflect.Zero(v.Type().Elem()), into)
	case reflect.Slice:
		settings(path+"[]", v.Index(0), into)
	case reflect.Struct:
		for i := range v.NumField() {
			inner, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
			if path != "" {
				inner = path + "." + inner
			}
			settings(inner, v.Field(i), into)
		}
	default:
		panic("no type for " + path)
	}
}

var row = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]+) \\| ([^|]+) \\| (.+) \\|$")

// docs/configuration.md has every setting with its type and default, and no other.
func TestDocumentation(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	service, programs, ok := strings.Cut(string(text), "\n## The programs file\n")
	if !ok {
		t.Fatal("no section on the programs file")
	}
	want := make(map[string]setting)
	f := newFiles(t)
	least := f.mutual() + replaced(t, f.minimal(), ", scopes: [orders:read], issuers: [ISSUER0001]", "", ", clientCertificate: false", "")
	settings("", reflect.ValueOf(*parse(t, least)), want)
	wantDocumented(t, service, want)
	for _, name := range []string{"CARDORDER_DATABASE_URL", "CARDORDER_DATABASE_DIRECT_URL", "CARDORDER_SEALING_KEYSET", "CARDORDER_CONTENT_HASH_KEY"} {
		if !strings.Contains(service, "Environment: `"+name+"`") {
			t.Errorf("%s is not documented", name)
		}
	}

	want = make(map[string]setting)
	settings("", reflect.ValueOf(config.ProgramsFile{Issuers: []config.IssuerPrograms{{
		Programs: []config.Program{{PaymentApplications: []config.PaymentProfile{{}}}},
	}}}), want)
	wantDocumented(t, programs, want)
}

// wantDocumented demands a row for each setting, with its type and default.
func wantDocumented(t *testing.T, text string, want map[string]setting) {
	t.Helper()
	found := make(map[string]bool)
	for _, m := range row.FindAllStringSubmatch(text, -1) {
		path, kind, byDefault := m[1], m[2], m[3]
		s, ok := want[path]
		if !ok {
			t.Errorf("%s is documented and cannot be set", path)
			continue
		}
		if found[path] {
			t.Errorf("%s is documented twice", path)
		}
		found[path] = true
		if kind != s.kind {
			t.Errorf("%s is a %s, documented as %s", path, s.kind, kind)
		}
		if value, err := strconv.Unquote(byDefault); err == nil && !sameValue(s, value) {
			t.Errorf("the default of %s is %s, documented as %s", path, s.value, value)
		}
		// A default that is not written as a value is an empty one, or another setting's.
		if !strings.Contains(byDefault, "`") && kind != "time" && byDefault != "required" && !slices.Contains([]string{"", "[]"}, s.value) {
			t.Errorf("the default of %s is %s, documented as %s", path, s.value, byDefault)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if !found[path] {
			t.Errorf("%s is not documented", path)
		}
	}
}

func sameValue(s setting, documented string) bool {
	if s.kind == "duration" {
		d, err := time.ParseDuration(documented)
		return err == nil && d.String() == s.value
	}
	return s.value == documented
}
