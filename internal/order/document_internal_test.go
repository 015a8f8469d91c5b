package order

import (
	"strings"
	"testing"
)

// A card number in the wrong place goes no further than the text, which is cleared.
func TestCardNumbersAreNotKept(t *testing.T) {
	t.Parallel()
	const number = "4111111111111111"
	d := newDocument([]byte(`{"a":"`+number+`","b":{"`+number+`":"x"}}`), &Rules{})
	o, ok := d.root()
	if !ok {
		t.Fatal(d.faults)
	}
	o.text("a", addressText)
	o.strings("b", 1, memberName, metadataValue)
	if len(d.faults) != 2 || strings.Contains(d.kept.String(), number) {
		t.Errorf("kept %q; faults %v", d.kept.String(), d.faults)
	}
}
