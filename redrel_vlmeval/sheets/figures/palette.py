"""The one colour scale of differences to the base, in workbook, page (``pages/charts.js``) and figures."""

# Orange through near-white to blue, told apart by every kind of colour vision; the middle stands at the base.
DIVERGING = ("8C3300", "C65911", "E8925A", "F5CDB0", "F4F2EE", "BCD9EE", "6FAEDB", "2B7FB8", "0B4A7A")
