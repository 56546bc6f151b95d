package resources

import "testing"

func TestTableIsServable(t *testing.T) {
	if _, err := NewRegistry(Table()); err != nil {
		t.Fatal(err)
	}
}
