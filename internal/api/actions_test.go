package api

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

// If-Match as RFC 9110 has it (8.8.3 and 13.1.1).
func TestIfMatch(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		header []string
		tags   string // "" when it is refused
	}{
		{nil, "[]"},
		{[]string{`"3"`}, `["3"]`},
		{[]string{` "3" `}, `["3"]`},
		{[]string{`*`}, `[*]`},
		{[]string{` * `}, `[*]`},
		{[]string{`W/"3"`}, `[W/"3"]`},
		{[]string{`"3", "4"`}, `["3" "4"]`},
		{[]string{`"3"	,	W/"4"`, `"5"`}, `["3" W/"4" "5"]`},
		{[]string{`, "3",,"4" ,`}, `["3" "4"]`},
		{[]string{`"a,b"`}, `["a,b"]`},
		{[]string{`""`}, `[""]`},
		{[]string{`"é"`}, `["é"]`},
		{[]string{``}, ""},
		{[]string{`,`}, ""},
		{[]string{`3`}, ""},
		{[]string{`"3`}, ""},
		{[]string{`3"`}, ""},
		{[]string{`"3" "4"`}, ""},
		{[]string{`"3"4`}, ""},
		{[]string{`w/"3"`}, ""},
		{[]string{`W/3`}, ""},
		{[]string{`W/`}, ""},
		{[]string{`"a b"`}, ""},
		{[]string{`*, "3"`}, ""},
		{[]string{`"3", *`}, ""},
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		for _, value := range test.header {
			r.Header.Add("If-Match", value)
		}
		tags, ok := readIfMatch(r)
		if got := fmt.Sprint(tags); ok != (test.tags != "") || ok && got != test.tags {
			t.Errorf("%q is read as %s, %v; want %q", test.header, got, ok, test.tags)
		}
	}
	for tag, want := range map[string]int{`"3"`: 3, `"12"`: 12, `"0"`: 0, `"-1"`: 0, `"03"`: 0, `"+3"`: 0, `""3""`: 0, `"x"`: 0, `W/"3"`: 0} {
		if version, ok := versionOf(tag); ok != (want != 0) || ok && version != want {
			t.Errorf("%s is version %d, %v; want %d", tag, version, ok, want)
		}
	}
}
