package api

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	"cardorder/internal/store"
)

// A heartbeat of another release may have anything in it: the replica is shown all
// the same, and nothing of what cannot be read.
func TestHealthOfAnotherRelease(t *testing.T) {
	t.Parallel()
	for health, want := range map[string]string{
		`{"sending":{"state":"open","reason":"dial","until":"2026-03-01T09:30:00Z"},"asking":{"state":"closed"},"inFlight":2,"concurrency":8,"clockSkewMs":-3,"newer":{}}`: `"sending":{"state":"open","reason":"dial","until":"2026-03-01T09:30:00Z"},"asking":{"state":"closed"},"inFlight":2,"concurrency":8,"clockSkewMs":-3}`,
		`{}`: `"inFlight":0,"concurrency":0,"clockSkewMs":0}`,
		`{"sending":{"state":"ajar"},"inFlight":"many"}`: `"inFlight":0,"concurrency":0,"clockSkewMs":0}`,
		`[1]`: `"inFlight":0,"concurrency":0,"clockSkewMs":0}`,
		``:    `"inFlight":0,"concurrency":0,"clockSkewMs":0}`,
	} {
		r := store.Replica{Host: "a", Health: map[string]json.RawMessage{"d1/ISSUER0001": json.RawMessage(health)}}
		got := string(toJSON(t, viewReplica(r, "d1/ISSUER0001")))
		if !strings.HasSuffix(got, `"host":"a","seenAt":"0001-01-01T00:00:00Z",`+want) {
			t.Errorf("%s is shown as %s", health, got)
		}
	}
}

// The names and the bound in the document are the store's.
func TestBacklogInDocument(t *testing.T) {
	t.Parallel()
	schemas := document(t).Components.Schemas
	var classes []string
	for _, class := range store.Classes {
		classes = append(classes, class.String())
	}
	sameNames(t, classes, texts(schemas["LaneBacklog"].Value.Properties["class"].Value.Enum))
	bound := strconv.Itoa(store.MaxBacklog)
	for _, text := range []string{
		schemas["LaneBacklog"].Value.Description, schemas["Lane"].Value.Properties["unknown"].Value.Description,
		schemas["Lane"].Value.Properties["refused"].Value.Description, schemas["Lane"].Value.Properties["givenUp"].Value.Description,
	} {
		if !strings.Contains(text, "up to "+bound) {
			t.Errorf("%q does not say that it is counted up to %s", text, bound)
		}
	}
	name := document(t).Components.Parameters["Lane"].Value.Schema.Value.Enum
	if got := texts(name); len(got) != 1 || got[0] != laneD1 {
		t.Errorf("the lanes are %v in the document", got)
	}
}
