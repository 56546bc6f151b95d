package memory

import (
	"testing"

	"github.com/keelson/keelson/apiserver/store"
	"github.com/keelson/keelson/apiserver/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return New() })
}
