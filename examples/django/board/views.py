import markdown
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from board.models import Notice
from board.revision import COMMIT


def index(request: HttpRequest) -> HttpResponse:
    notices = [(notice, markdown.markdown(notice.text)) for notice in Notice.objects.all()[:50]]
    return render(request, "board/index.html", {"notices": notices, "commit": COMMIT})


def healthz(request: HttpRequest) -> JsonResponse:
    """200 if the database answers and has this release's tables; tells the commit that answers."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM board_jobrun")
    except Exception as error:  # whatever is wrong with the database, that is the answer
        return JsonResponse({"commit": COMMIT, "error": str(error)}, status=503)
    return JsonResponse({"commit": COMMIT})
