package api

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"cardorder/internal/order"
)

// The runbook has every attention, in the words of the code.
func TestRunbook(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	const head = "| code | what is the matter | who | next step |\n|---|---|---|---|\n"
	row := func(code string, a order.Advice) string {
		return fmt.Sprintf("| `%s` | %s | %s | %s |\n", code, a.Detail, a.Actor, a.Next)
	}
	orders, lanes := head, head
	for _, a := range order.Attentions() {
		orders += row(string(a), a.Advice())
	}
	for _, a := range order.LaneAttentions {
		lanes += row(string(a), a.Advice())
	}
	for _, table := range []string{orders, lanes} {
		if !strings.Contains(string(text), table+"\n") {
			t.Errorf("docs/operations.md lacks this table:\n%s", table)
		}
	}
}
